"""``python -m experiments.studies.digits``: the presets on handwritten digits.

Nesterov, Adam and Muon get the same trials of learning rate, momentum and its ramp,
drawn together; `large_batch_nlcg` gets fewer, of its learning rate; in
`tuning_free_nlcg` nothing is tuned. The trial with the least training loss runs again
on fresh seeds. Rerunning the command resumes where it stopped; ``--out`` names another
folder.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import rich.console
import tyro

from experiments import data
from experiments.errors import ending_with_a_message
from experiments.report.write import write_report
from experiments.studies.large_batch.methods import LEAD
from experiments.studies.large_batch.plan import SMALL, Study, sweep_of
from experiments.studies.large_batch.tasks import DIGITS
from experiments.tuning.runner import Runner
from experiments.tuning.study import run_study, sweep_stage
from experiments.tuning.sweep import final_records

MODULE = "experiments.studies.digits"

NAMES = ("nesterov", "adam", "muon", "large_batch_nlcg", "tuning_free_nlcg")
METHODS = tuple(
    next(candidate for candidate in LEAD if candidate.optimizer == name)
    for name in NAMES
)
DEMO = Study(tasks=(DIGITS,), final_seeds=(10, 11, 12))


@dataclasses.dataclass(frozen=True)
class DemoArguments:
    """Compares the presets with tuned optimizers on scikit-learn's handwritten digits.

    Attributes:
      small: a few trials and steps, to see that everything runs.
      out: folder of the records, the tables and the curves.
    """

    small: bool = False
    out: Path = Path("runs/demo")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(DemoArguments, prog=f"python -m {MODULE}", args=arguments)
    console = rich.console.Console()
    start = time.perf_counter()
    study = SMALL if given.small else DEMO
    sweeps = {
        place.name: sweep_of(study, place, METHODS)
        for place in study.places
        if place.task.chosen_on
    }
    with ending_with_a_message(MODULE, arguments):
        run_study(
            [sweep_stage(sweep, given.out / name) for name, sweep in sweeps.items()],
            Runner(data.DATA_DIR),
            console,
            show_each=False,
        )
        records = [
            record
            for name, sweep in sweeps.items()
            for record in final_records(sweep, given.out / name)
        ]
        write_report(records, given.out, console)
    console.print(f"The demo took {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
