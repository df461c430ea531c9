"""``python -m experiments.studies.fewstep``: sixty large-batch steps.

Ten classes of CIFAR-100 at half the resolution and a small network with batch
normalisation; digits where CIFAR-100 is not prepared. Every method is tuned for the
least training loss and runs again on fresh seeds: baselines over learning rate and
momentum, NLCG over the learning rate only, the tuning-free presets not at all. A run
that is recorded is not repeated, so that the command can be stopped and called again.
It ends in tables and curves; ``--report-only`` makes these from what there is.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import rich.console
import tyro

from experiments import data
from experiments.studies.fewstep.plan import full_study, small_study
from experiments.studies.fewstep.report import write_report
from experiments.studies.fewstep.runner import Runner, cells, finished


@dataclasses.dataclass(frozen=True)
class FewStepArguments:
    """Compares tuned optimisers over a few large-batch steps.

    Attributes:
      data_dir: folder of all prepared data sets.
      out: folder of the records, tables and curves.
      tasks: names of the tasks to run, all by default.
      parts: batch sizes to run, as parts of the training set, all by default; several
        commands can share the work like that.
      grid_extensions: how often the grids of a batch size may grow, for all methods
        together, where the best learning rate of one is on its edge.
      small: a few methods for a few steps, to see that everything runs.
      report_only: run nothing.
    """

    data_dir: Path = data.DATA_DIR
    out: Path = Path("runs/fewstep")
    tasks: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()
    grid_extensions: int = 1
    small: bool = False
    report_only: bool = False


def run(given: FewStepArguments, console: rich.console.Console) -> None:
    """Runs what is not recorded, then reports."""
    study = small_study() if given.small else full_study(with_images=_has_images(given))
    study = dataclasses.replace(study, grid_extensions=given.grid_extensions)
    names = [task.name for task in study.tasks]
    if unknown := set(given.tasks) - set(names):
        raise ValueError(f"tasks={sorted(unknown)!r} are unknown; allowed are {names}")
    if given.tasks:
        chosen = tuple(task for task in study.tasks if task.name in given.tasks)
        study = dataclasses.replace(study, tasks=chosen)
    if given.parts:
        study = dataclasses.replace(
            study,
            tasks=tuple(
                dataclasses.replace(
                    task, batches=tuple(p for p in task.batches if p in given.parts)
                )
                for task in study.tasks
            ),
        )
    runner, start, done = Runner(given.data_dir), time.perf_counter(), 0
    for cell in () if given.report_only else cells(study, given.out):
        if finished(cell.path) is None:
            told = runner.run(cell)
            done += 1
            name = cell.path.relative_to(given.out).with_suffix("")
            seconds = time.perf_counter() - start
            console.print(f"{seconds:6.0f} s, run {done}: {name}: {told}")
    write_report(study, given.out, console)


def _has_images(given: FewStepArguments) -> bool:
    try:
        data.load("cifar100", data.DataOptions(given.data_dir))
    except data.NotPreparedError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    try:
        run(tyro.cli(FewStepArguments, args=arguments), rich.console.Console())
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
