"""The training loop: one functional state, one compiled call for whole epochs.

`make_program` turns a configuration into pure functions; `run_epochs` drives them.
"""

from experiments.training.driver import CompiledProgram as CompiledProgram
from experiments.training.driver import DivergedError as DivergedError
from experiments.training.driver import Report as Report
from experiments.training.driver import check_finite as check_finite
from experiments.training.driver import compile_program as compile_program
from experiments.training.driver import diverged as diverged
from experiments.training.driver import run_epochs as run_epochs
from experiments.training.evaluation import Evaluation as Evaluation
from experiments.training.evaluation import evaluate_split as evaluate_split
from experiments.training.hyperparameters import (
    hyperparameters_of as hyperparameters_of,
)
from experiments.training.hyperparameters import program_of as program_of
from experiments.training.program import Program as Program
from experiments.training.program import make_program as make_program
from experiments.training.state import TrainState as TrainState
from experiments.training.step import Metrics as Metrics
