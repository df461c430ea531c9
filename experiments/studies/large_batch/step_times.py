"""``python -m experiments.studies.large_batch.step_times``: what a step costs.

Muon, the presets and Adam train at each place of sixty steps in turn, in one process;
a time is that of a whole run without compilation. The ratio to Muon is the median over
turns, so that other work of the machine matters little.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import rich.console
import tyro

from experiments import data
from experiments.bench.timing import median_ratio
from experiments.errors import ending_with_a_message
from experiments.report.tables import Column, Table
from experiments.studies.large_batch import methods
from experiments.studies.large_batch.methods import Candidate
from experiments.studies.large_batch.plan import Study, config_of
from experiments.studies.large_batch.tasks import Place
from experiments.tuning.runner import PlannedRun, Runner

MODULE = "experiments.studies.large_batch.step_times"
REFERENCE = methods.MUON
COMPARED = (
    REFERENCE,
    methods.LARGE_BATCH,
    methods.TUNING_FREE,
    *(one for one in methods.LEAD if one.optimizer == "adam"),
)


@dataclasses.dataclass(frozen=True)
class StepTimesArguments:
    """Compares the time of a step with that of Muon at the places of the study.

    Attributes:
      data_dir: folder of all prepared data sets.
      tasks: tasks to run, all by default.
      turns: runs of each method; the first one does not count.
    """

    data_dir: Path = data.DATA_DIR
    tasks: tuple[str, ...] = ()
    turns: int = 4


class StepTime(NamedTuple):
    """What a method costs at a place.

    Attributes:
      milliseconds: milliseconds per step, the least of all turns but the first.
      ratio: ratio to `REFERENCE`, the median of these turns.
    """

    milliseconds: float
    ratio: float


def measure(
    place: Place, turns: int, runner: Runner, folder: Path
) -> dict[str, StepTime]:
    """Times the methods at a place, by label.

    Args:
      place: task, batch size and number of steps.
      turns: runs of each method.
      runner: trains them.
      folder: folder of their records, which are overwritten.

    Raises:
      ValueError: if there are fewer than two turns, or a run diverges.
    """
    if turns < 2:
        raise ValueError(f"turns={turns} must be at least 2")
    seconds: dict[str, list[float]] = {one.label: [] for one in COMPARED}
    for _ in range(turns):
        for one in COMPARED:
            (summary,) = runner.run([_run(place, one, folder)])
            if summary is None:
                raise ValueError(f"{one.label} diverged on {place.title}")
            seconds[one.label].append(summary["seconds"])
    reference = seconds[REFERENCE.label]
    return {
        label: StepTime(
            1e3 * min(times[1:]) / place.steps, median_ratio(times, reference)
        )
        for label, times in seconds.items()
    }


def _run(place: Place, candidate: Candidate, folder: Path) -> PlannedRun:
    config = config_of(place, candidate)
    if candidate.momentum is not None:
        momentum = {candidate.momentum: 0.9, "ramp": 0.0}
        options = {**config.optimizer_options, **momentum}
        config = dataclasses.replace(config, optimizer_options=options)
    return PlannedRun(config, folder / f"{candidate.optimizer}.jsonl")


def table(found: dict[str, dict[str, StepTime]]) -> Table:
    """The table, with a row for each place."""
    columns = [Column("place", "place", list(found))]
    for one in COMPARED:
        times = [at_place[one.label] for at_place in found.values()]
        milliseconds = [f"{time.milliseconds:.3g}" for time in times]
        columns.append(Column(f"{one.label}, ms", f"{one.label}, ms", milliseconds))
        if one is not REFERENCE:
            ratios = [f"{time.ratio:.2f}" for time in times]
            columns.append(Column("of Muon's", "of Muon's", ratios))
    return Table(columns, "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(StepTimesArguments, prog=f"python -m {MODULE}", args=arguments)
    with ending_with_a_message(MODULE, arguments):
        study = Study()
        known = [task.name for task in study.tasks]
        if unknown := sorted(set(given.tasks) - set(known)):
            raise ValueError(f"tasks={unknown!r} are unknown; allowed are {known}")
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for place in study.places:
                is_asked_for = place.task.name in (given.tasks or known)
                if is_asked_for and place.steps == study.steps:
                    runner = Runner(given.data_dir)
                    found[place.title] = measure(
                        place, given.turns, runner, Path(folder)
                    )
        rich.console.Console().print(table(found).markdown())


if __name__ == "__main__":
    main()
