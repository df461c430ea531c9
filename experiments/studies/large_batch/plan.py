"""What is run, and in which order: the most informative first."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.config import RunConfig
from experiments.records.files import read_record
from experiments.studies.large_batch import methods
from experiments.studies.large_batch.methods import Candidate
from experiments.studies.large_batch.settings import (
    common_setting,
    csv_path,
    tuned_setting,
)
from experiments.studies.large_batch.tasks import (
    SMALL_TASKS,
    STEPS,
    TASKS,
    Place,
    Task,
    places_of,
)
from experiments.tuning.jobs import Job
from experiments.tuning.samplers import Point, with_values
from experiments.tuning.study import Stage
from experiments.tuning.sweep import (
    Method,
    Sweep,
    final_records,
    outcome,
    rounds,
    trial_paths,
    with_choice,
)

FACTORS = (0.5, 0.5**0.5, 2**0.5, 2.0)  # of the best learning rate, tried last
MOST_BEHIND = math.log(4)  # a cell counts no more than this in the choice of a setting


@dataclasses.dataclass(frozen=True)
class Study:
    """How much is run.

    Attributes:
      tasks: all tasks in their order, on which choices and the report depend.
      left_out: names of the tasks that are not run.
      steps: length of the short runs.
      draws: first trials of a method whose rate, momentum and ramp are tuned.
      alone: first trials of a method with nothing but a learning rate.
      refined_by: see `Sweep`.
      final_seeds: seeds of the runs that are reported.
      groups: names in `methods.GROUPS`.
      settings: folder of the CSV files of the final runs of an earlier study, whose
        settings are used in place of a search; None for a search.
    """

    tasks: tuple[Task, ...] = TASKS
    left_out: tuple[str, ...] = ()
    steps: int = STEPS
    draws: int = 12
    alone: int = 8
    refined_by: tuple[float, ...] = FACTORS
    final_seeds: tuple[int, ...] = (10, 11, 12, 13, 14, 15)
    groups: tuple[str, ...] = methods.GROUPS
    settings: Path | None = None

    @property
    def places(self) -> list[Place]:
        """All tasks, batch sizes and lengths."""
        return places_of(self.tasks, self.steps)


SMALL = Study(
    tasks=SMALL_TASKS,
    steps=8,
    draws=2,
    alone=2,
    refined_by=(2.0,),
    final_seeds=(10, 11),
)


def sweep_of(study: Study, place: Place, candidates: Sequence[Candidate]) -> Sweep:
    """The comparison of some methods at a place.

    Runs are judged by the training loss: the validation loss would choose smaller rates
    for methods that fit the data, and hold them back.
    """
    return Sweep(
        tuple(_method(study, place, one) for one in candidates),
        refined_by=study.refined_by,
        final_seeds=study.final_seeds,
        criterion="train_loss",
    )


def _method(study: Study, place: Place, candidate: Candidate) -> Method:
    """A method with its first trials, or with the setting that is known."""
    config = config_of(place, candidate)
    if study.settings is None or candidate.span is None:
        return Method(config, candidate.searches(study.draws, study.alone))
    setting = tuned_setting(study.settings, place, candidate)
    if setting is None:
        raise ValueError(
            f"settings={str(study.settings)!r} has no run of {candidate.label} at "
            f"{place.title}"
        )
    return Method(with_values(config, setting))


def config_of(place: Place, candidate: Candidate) -> RunConfig:
    """The settings of a method at a place, with the center of its learning rates.

    Raises:
      ValueError: if the place ends within an epoch.
    """
    task, size = place.task, place.batch_size
    epochs, rest = divmod(place.steps * size, task.examples)
    if rest:
        raise ValueError(
            f"{place.title} ends within an epoch; the steps times the batch size must "
            f"be a multiple of the {task.examples} examples"
        )
    config = RunConfig(
        **task.settings,
        learning_rate=candidate.center,
        schedule=candidate.schedule,
        ema_decay=candidate.ema_decay,
        batch_size=None if size == task.examples else size,
        epochs=epochs,
        epochs_per_report=epochs,
    )
    return with_choice(config, candidate.choice(place.steps))


def candidates_of(
    study: Study, group: str, place: Place, out: Path
) -> tuple[Candidate, ...]:
    """The methods of a group at a place; none where it is not run, or not yet.

    With the settings of an earlier study, the methods that it ran there.

    Args:
      study: how much is run.
      group: a name in `methods.GROUPS`.
      place: task, batch size and number of steps.
      out: folder of the records, on which some groups depend.
    """
    candidates = _planned(study, group, place, out)
    folder = study.settings
    if folder is None:
        return candidates
    return tuple(
        one
        for one in candidates
        if one.span is None or tuned_setting(folder, place, one) is not None
    )


def _planned(
    study: Study, group: str, place: Place, out: Path
) -> tuple[Candidate, ...]:
    everywhere = {"lead": methods.LEAD, "more": methods.MORE, "free": methods.FREE}
    if group in everywhere:
        return everywhere[group]
    if group == "calibrated":
        return calibrated(study, out)
    is_short = place.steps == study.steps
    if not place.task.chosen_on or not is_short:
        return ()
    if group == "beta":
        return _of_measured_beta(study, place, out)
    return {
        "order": methods.ORDERED,
        "step": methods.STEPPED,
        "annealed": methods.ANNEALED,
        "averaged": methods.AVERAGED,
    }[group]


def folder_of(out: Path, place: Place, group: str) -> Path:
    """Where the records of a group at a place are."""
    return out / place.name / group


def stages(study: Study, out: Path) -> list[Stage]:
    """All that is run: group by group, each at all places of the tasks."""
    return [
        Stage(_most_runs(study, group, place), _later(study, group, place, out))
        for group in study.groups
        for place in study.places
        if place.task.name not in study.left_out
    ]


def _later(
    study: Study, group: str, place: Place, out: Path
) -> Callable[[], Iterator[Sequence[Job]]]:
    def planned() -> Iterator[Sequence[Job]]:
        candidates = candidates_of(study, group, place, out)
        if candidates:
            sweep = sweep_of(study, place, candidates)
            yield from rounds(sweep, folder_of(out, place, group))

    return planned


def _most_runs(study: Study, group: str, place: Place) -> int:
    stand_ins = {
        "calibrated": tuple(_fixed(c, {}) for c in methods.CALIBRATED),
        "beta": methods.of_beta([0.5], 0.5, 0.6),
    }
    chosen_on = place.task.chosen_on and place.steps == study.steps
    if group == "beta" and not chosen_on:
        return 0
    candidates = stand_ins.get(group) or candidates_of(study, group, place, Path())
    return sweep_of(study, place, candidates).most_runs if candidates else 0


def calibrated(study: Study, out: Path) -> tuple[Candidate, ...]:
    """One setting of each method of `methods.CALIBRATED`, for all tasks.

    The first trials are the same everywhere. The setting is the trial with the least
    mean logarithm of the training loss over the short runs of the tasks on which
    choices may be made; each loss counts as at most four times the method's best one
    there. Empty as long as any of these trials is not complete, also where their task
    is left out. With the settings of an earlier study, it is the one that was run
    everywhere.
    """
    chosen_on = [
        place
        for place in study.places
        if place.task.chosen_on and place.steps == study.steps
    ]

    def setting_of(candidate: Candidate) -> Point | None:
        folder = study.settings
        if folder is None:
            return _best_setting(study, candidate, chosen_on, out)
        # Other tasks may have been left out of that study.
        ran = [
            p for p in study.places if p in chosen_on or csv_path(folder, p).exists()
        ]
        return common_setting(folder, ran, candidate)

    return tuple(
        _fixed(candidate, setting)
        for candidate in methods.CALIBRATED
        if (setting := setting_of(candidate)) is not None
    )


def _best_setting(
    study: Study, candidate: Candidate, where: Sequence[Place], out: Path
) -> Point | None:
    (points,) = candidate.searches(study.draws, study.alone)
    behind = []
    for place in where:
        (method,) = sweep_of(study, place, [candidate]).methods
        paths = trial_paths(method, len(points), folder_of(out, place, "lead"))
        if not all(path.exists() for path in paths):
            return None
        records = [read_record(path, interrupted=True) for path in paths]
        if any(r.summary is None and r.stopped is None for r in records):
            return None
        losses = [outcome(record).train_loss for record in records]
        tiny = 1e-9  # so that a loss of zero has a logarithm
        logs = [math.log(x + tiny) if math.isfinite(x) else math.inf for x in losses]
        behind.append([min(log - min(logs), MOST_BEHIND) for log in logs])
    if not behind:
        return None
    means = [statistics.fmean(of_point) for of_point in zip(*behind, strict=True)]
    return points[means.index(min(means))]


def _fixed(candidate: Candidate, setting: Point) -> Candidate:
    """A candidate with nothing left to tune."""
    options = {k: v for k, v in setting.items() if k != "learning_rate"}
    return dataclasses.replace(
        candidate,
        center=setting.get("learning_rate", candidate.center),
        options={**candidate.options, **options},
        span=None,
        momentum=None,
    )


def _of_measured_beta(study: Study, place: Place, out: Path) -> tuple[Candidate, ...]:
    """The β of the tuned preset, the median over its final seeds, in other forms."""
    sweep = sweep_of(study, place, [methods.LARGE_BATCH])
    try:
        records = final_records(sweep, folder_of(out, place, "lead"))
    except FileNotFoundError:
        return ()
    found = [r.series("beta") for r in records if r.summary is not None]
    if not found:
        return ()
    betas = np.median(found, axis=0)
    risen = 1 - methods.RAMPS[1] ** np.arange(len(betas))
    return methods.of_beta(
        [round(float(beta), 4) for beta in betas],
        round(float(betas.mean()), 3),
        round(float(betas.sum() / risen.sum()), 3),
    )
