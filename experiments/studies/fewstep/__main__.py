"""``python -m experiments.studies.fewstep``: sixty large-batch steps.

Ten classes of CIFAR-100 at half the resolution and a small network with batch
normalization; digits if CIFAR-100 is not prepared. Every method is tuned for the least
training loss and runs again on fresh seeds: baselines over learning rate and momentum,
NLCG over the learning rate only, the tuning-free presets not at all. Rerunning the
command resumes where it stopped. It ends with tables and curves; ``--report-only``
makes these from the existing records.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import rich.console
import tyro

from experiments import data
from experiments.choices import one_of
from experiments.errors import ending_with_a_message
from experiments.studies.fewstep.plan import Study, full_study, small_study, stages
from experiments.studies.fewstep.report import write_report
from experiments.tuning.runner import Runner
from experiments.tuning.study import run_study

MODULE = "experiments.studies.fewstep"

TASKS = [task.name for task in full_study(with_images=True).tasks]


@dataclasses.dataclass(frozen=True)
class FewStepArguments:
    """Compares tuned optimizers over a few large-batch steps.

    Attributes:
      data_dir: folder of all prepared data sets.
      out: folder of the records, tables and curves.
      tasks: tasks to run, all by default.
      parts: batch sizes to run, as parts of the training set, all by default; with
        tasks and parts, several commands can share the work.
      extensions: how often the searches of a batch size may be extended.
      small: a few methods for a few steps, to see that everything runs.
      report_only: write the report without running anything.
    """

    data_dir: Path = data.DATA_DIR
    out: Path = Path("runs/fewstep")
    tasks: Annotated[tuple[str, ...], one_of(TASKS)] = ()
    parts: tuple[int, ...] = ()
    extensions: int = 1
    small: bool = False
    report_only: bool = False


def study_of(given: FewStepArguments) -> Study:
    """The part of the study that the arguments choose.

    Raises:
      ValueError: if there is no such task or part.
    """
    study = small_study() if given.small else full_study(with_images=_has_images(given))
    names = [task.name for task in study.tasks]
    if unknown := set(given.tasks) - set(names):
        raise ValueError(f"tasks={sorted(unknown)!r} are unknown; allowed are {names}")
    parts = sorted({part for task in study.tasks for part in task.parts})
    if unknown_parts := set(given.parts) - set(parts):
        raise ValueError(
            f"parts={sorted(unknown_parts)!r} are unknown; allowed are {parts}"
        )
    tasks = tuple(
        dataclasses.replace(
            task, parts=tuple(p for p in task.parts if p in (given.parts or parts))
        )
        for task in study.tasks
        if task.name in (given.tasks or names)
    )
    return dataclasses.replace(study, tasks=tasks, extensions=given.extensions)


def _has_images(given: FewStepArguments) -> bool:
    try:
        data.load("cifar100", data.DataOptions(given.data_dir))
    except data.NotPreparedError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(FewStepArguments, prog=f"python -m {MODULE}", args=arguments)
    console = rich.console.Console()
    with ending_with_a_message(MODULE, arguments):
        study = study_of(given)
        if not given.report_only:
            run_study(stages(study, given.out), Runner(given.data_dir), console)
        write_report(study, given.out, console)


if __name__ == "__main__":
    main()
