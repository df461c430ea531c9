"""``python -m experiments.studies.digits``: tuned optimizers on handwritten digits.

Every method takes the same number of steps and gets the same number of trials of its
learning rate, chosen by the validation loss; the best one runs again on fresh seeds.
Rerunning the command resumes where it stopped; ``--out`` names another folder.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import rich.console
import tyro

from experiments import data
from experiments.config import RunConfig
from experiments.errors import ending_with_a_message
from experiments.optimizers import Choice
from experiments.report.write import write_report
from experiments.tuning.runner import Runner
from experiments.tuning.samplers import grid
from experiments.tuning.study import run_study, sweep_stage
from experiments.tuning.sweep import (
    Method,
    Sweep,
    final_records,
    with_choice,
)

MODULE = "experiments.studies.digits"

EXAMPLES = 1024  # of the training split

UNSMOOTHED = {"beta_max": 1.0, "beta_smoothing": 0.0}
# Each with the center of its learning rates.
METHODS: tuple[tuple[Choice, float], ...] = (
    (Choice("sgd", {}), 0.4),
    (Choice("nesterov", {}), 0.2),
    (Choice("adam", {}), 0.02),
    (Choice("nlcg", {"rule": "fr"}), 0.4),
    (Choice("nlcg", {"rule": "fr", "preconditioner": "rms"}), 0.006),
    (Choice("nlcg", {"rule": "fr", "preconditioner": "secant"}), 0.4),
    (Choice("nlcg", {}), 0.4),
    (Choice("nlcg", {"preconditioner": "rms"}), 0.01),
    (Choice("nlcg", {"preconditioner": "secant"}), 0.4),
    (Choice("nlcg", {"preconditioner": "rms", **UNSMOOTHED}), 0.005),
    (Choice("paper_nlcg", {}), 0.4),
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is run.

    Attributes:
      methods: optimizers with the centers of their learning rates.
      batch_sizes: None is the full batch.
      steps: length of every run.
      points: learning rates that are tried at first.
      factor: ratio of neighboring learning rates.
      extensions: how often the searches of all methods may be extended.
      trial_seeds: a trial is judged by its mean over them.
      final_seeds: seeds of the runs that are reported.
    """

    methods: tuple[tuple[Choice, float], ...] = METHODS
    batch_sizes: tuple[int | None, ...] = (256, None)
    steps: int = 80
    points: int = 7
    factor: float = 2.0
    extensions: int = 3
    trial_seeds: tuple[int, ...] = (0, 1)
    final_seeds: tuple[int, ...] = (10, 11, 12)


SMALL = Budget(
    methods=(METHODS[0], METHODS[2], METHODS[4]),
    batch_sizes=(256,),
    steps=20,
    points=3,
    factor=4.0,
    extensions=1,
    trial_seeds=(0,),
    final_seeds=(10, 11),
)


@dataclasses.dataclass(frozen=True)
class DemoArguments:
    """Compares tuned optimizers on scikit-learn's handwritten digits.

    Attributes:
      small: a few methods and steps, to see that everything runs.
      out: folder of the records, the tables and the curves.
    """

    small: bool = False
    out: Path = Path("runs/demo")


def sweep_of(budget: Budget, batch_size: int | None) -> Sweep:
    """The comparison at a batch size."""
    epochs = budget.steps * (batch_size or EXAMPLES) // EXAMPLES
    config = RunConfig(batch_size=batch_size, epochs=epochs, epochs_per_report=epochs)
    methods = [
        Method(with_choice(config, choice), grid(center, budget.points, budget.factor))
        for choice, center in budget.methods
    ]
    return Sweep(
        tuple(methods),
        extensions=budget.extensions,
        factor=budget.factor,
        trial_seeds=budget.trial_seeds,
        final_seeds=budget.final_seeds,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(DemoArguments, prog=f"python -m {MODULE}", args=arguments)
    console = rich.console.Console()
    start = time.perf_counter()
    budget = SMALL if given.small else Budget()
    sweeps = [sweep_of(budget, batch_size) for batch_size in budget.batch_sizes]
    with ending_with_a_message(MODULE, arguments):
        run_study(
            [sweep_stage(sweep, given.out) for sweep in sweeps],
            Runner(data.DATA_DIR),
            console,
            show_each=False,
        )
        records = [r for sweep in sweeps for r in final_records(sweep, given.out)]
        write_report(records, given.out, console)
    console.print(f"The demo took {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
