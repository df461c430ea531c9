"""``python -m experiments.studies.large_batch``: the presets at large batch.

Runs sixty steps on small tasks, each at two batch sizes, and some for longer. Baselines
are tuned over learning rate, momentum and its ramp, `large_batch_nlcg` over the
learning rate; `tuning_free_nlcg` and the published learning-rate-free methods are run
unmodified. Everything is judged on six fresh seeds. Rerunning the command resumes where
it stopped; ``--report-only`` makes tables and pictures from the existing records.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import rich.console
import tyro

from experiments import data
from experiments.choices import one_of
from experiments.config import RunConfig
from experiments.errors import ending_with_a_message
from experiments.studies.large_batch.methods import GROUPS
from experiments.studies.large_batch.plan import SMALL, Study, stages
from experiments.studies.large_batch.report import write_report
from experiments.studies.large_batch.tasks import Task
from experiments.tuning.runner import Runner
from experiments.tuning.study import run_study

MODULE = "experiments.studies.large_batch"


@dataclasses.dataclass(frozen=True)
class LargeBatchArguments:
    """Compares the presets with tuned and with learning-rate-free optimizers.

    Attributes:
      data_dir: folder of all prepared data sets; a task without its data is left out.
      out: folder of the records, tables and curves.
      tasks: tasks to run, all by default; one setting for all tasks still depends on
        the trials of all tasks for choices.
      groups: groups of methods to run, all by default; the report is of all groups.
      settings: folder of the CSV files of an earlier run of this study; the final runs
        are repeated with their settings, without a search.
      workers: processes that train side by side, with a CPU core each.
      seconds: no run is started that would end later than this.
      small: two tasks for a few steps, to see that everything runs.
      report_only: write the report without running anything.
    """

    data_dir: Path = data.DATA_DIR
    out: Path = Path("runs/large_batch")
    tasks: tuple[str, ...] = ()
    groups: Annotated[tuple[str, ...], one_of(GROUPS)] = ()
    settings: Path | None = None
    workers: int = 1
    seconds: float = math.inf
    small: bool = False
    report_only: bool = False


def study_of(given: LargeBatchArguments, console: rich.console.Console) -> Study:
    """The part of the study that the arguments and the prepared data allow.

    Raises:
      ValueError: if there is no such task or group.
    """
    study = SMALL if given.small else Study()
    for name, chosen, known in (
        ("tasks", given.tasks, [task.name for task in study.tasks]),
        ("groups", given.groups, list(GROUPS)),
    ):
        if unknown := sorted(set(chosen) - set(known)):
            raise ValueError(f"{name}={unknown!r} are unknown; allowed are {known}")
    left_out = []
    for task in study.tasks:
        if task.name not in (given.tasks or task.name):
            left_out.append(task.name)
        elif not (given.report_only or _is_prepared(task, given.data_dir)):
            left_out.append(task.name)
            console.print(f"Task {task.name} is left out: its data is not prepared.")
    return dataclasses.replace(
        study,
        left_out=tuple(left_out),
        groups=given.groups or study.groups,
        settings=given.settings,
    )


def _is_prepared(task: Task, data_dir: Path) -> bool:
    config = RunConfig(**task.settings)
    with contextlib.suppress(data.NotPreparedError):
        data.load(config.dataset, config.data_options(data_dir))
        return True
    return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(LargeBatchArguments, prog=f"python -m {MODULE}", args=arguments)
    console = rich.console.Console()
    with ending_with_a_message(MODULE, arguments):
        study = study_of(given, console)
        if not given.report_only:
            run_study(
                stages(study, given.out),
                Runner(given.data_dir),
                console,
                workers=given.workers,
                seconds=given.seconds,
            )
        write_report(study, given.out, console)


if __name__ == "__main__":
    main()
