"""One run from its first step to its summary, with the record it leaves."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config import RunConfig
from experiments.data import AnyDataset
from experiments.records.files import (
    Line,
    RecordWriter,
    RunRecord,
    SilentWriter,
    record_exists,
)
from experiments.records.reports import (
    record_evaluation,
    record_steps,
    record_summary,
)
from experiments.records.resume import Kept, interrupted_record, take_back
from experiments.training import (
    CompiledProgram,
    Program,
    Report,
    TrainState,
    hyperparameters_of,
    run_epochs,
)
from experiments.training.checkpoints import Checkpoints, Restored
from experiments.training.processes import is_first

OnReport = Callable[[Report, Line], None]


def check_record(path: Path, config: RunConfig, *, resume: bool) -> None:
    """Rejects a record that a run could not write, before any work.

    Raises:
      FileExistsError: if the record exists and the run is not resumed.
      ValueError: if the run is resumed and the record belongs to another configuration.
    """
    if resume:
        interrupted_record(path, config)
    elif path.exists():
        raise record_exists(path)


def record_run(
    path: Path,
    compiled: CompiledProgram,
    config: RunConfig,
    dataset: AnyDataset,
    *,
    trials: Iterable[Line] = (),
    on_report: OnReport | None = None,
    overwrite: bool = False,
    checkpoints: Checkpoints | None = None,
) -> Line:
    """Trains, evaluates and writes the record.

    If there are several processes, the first one writes the record.

    With checkpoints an interrupted run resumes from the newest one and reaches the same
    numbers as without the interruption, except for the seconds. The record then says
    where it was resumed and with which commit. A run that has ended is not repeated. If
    the record was lost, a warning says so and a new one begins at the step of the
    checkpoint. If the checkpoints were lost, the record is not replaced unless
    ``overwrite`` is true.

    Args:
      path: path of the record.
      compiled: the compiled program of ``config``.
      config: settings of the run.
      dataset: what to train and evaluate on.
      trials: trials of the search for the learning rate, to be kept in the record.
      on_report: called after each report, with it and its evaluation.
      overwrite: whether an existing record is replaced.
      checkpoints: checkpoints of the same ``config``, to save and restore the state.

    Returns:
      The summary; empty in other processes if the run had ended before.

    Raises:
      CheckpointError: if a checkpoint cannot be written, or none can be read.
      DivergedError: if a loss or a weight is not finite; the record then says so, and
        the checkpoints are older.
      FileExistsError: if the record exists, is not resumed, and ``overwrite`` is False.
      ValueError: if the record or the checkpoints belong to another configuration, the
        record was lost and no step is left to record, or there is no checkpoint
        although the record shows that one was due.
    """
    program = compiled.program
    state = program.init(config.seed, config.learning_rate, hyperparameters_of(config))
    restored = None
    if checkpoints is not None:
        earlier = interrupted_record(path, config) if is_first() else None
        if _has_ended(earlier):
            return {} if earlier is None else earlier.summary or {}
        restored = checkpoints.restore(state)
        if earlier is not None and restored is None and not overwrite:
            _check_checkpoints(path, earlier, checkpoints)
        overwrite = True  # killed before its first checkpoint, it starts anew
    start = _Start(state, 0.0, Kept({}, []), resume=False)
    if restored is not None:
        start = _resumed(path, restored, last=_last_step(config, program))
    begins_at = 0 if restored is None else restored.step
    with (
        RecordWriter(
            path, config, overwrite=overwrite, resume=start.resume, begins_at=begins_at
        )
        if is_first()
        else SilentWriter()
    ) as writer:
        if not start.resume:
            for trial in trials:
                writer.write("trial", trial)
        state, evaluation = _train(
            writer, compiled, config, dataset, start, on_report, checkpoints
        )
        evaluation = {**evaluation, "compile_seconds": compiled.compile_seconds}
        return record_summary(writer, state, evaluation, program, dataset, config)


def _train(
    writer: RecordWriter,
    compiled: CompiledProgram,
    config: RunConfig,
    dataset: AnyDataset,
    start: "_Start",
    on_report: OnReport | None,
    checkpoints: Checkpoints | None,
) -> tuple[TrainState, Line]:
    """Trains and records each report; returns the last state and evaluation."""
    program = compiled.program
    state, seconds, (evaluation, steps), _ = start
    begun, begun_seconds = _columns(steps), 0.0
    if steps:
        begun_seconds = seconds - evaluation.get("seconds", 0.0)
    pause_seconds = None if checkpoints is None else _pause_seconds(checkpoints)
    for report in run_epochs(compiled, config, dataset, state, pause_seconds):
        state = report.state
        record_steps(writer, report, program, config, seconds)
        seconds += report.seconds
        report = report._replace(
            metrics=_joined(begun, report.metrics),
            seconds=begun_seconds + report.seconds,
        )
        begun, begun_seconds = report.metrics, report.seconds
        if report.complete:
            begun, begun_seconds = {}, 0.0
            evaluation = record_evaluation(
                writer, report, program, dataset, config, seconds
            )
        if checkpoints is not None and (
            not report.complete or checkpoints.is_due(report.number)
        ):
            writer.sync()
            checkpoints.save(int(state.step), state, {"seconds": seconds})
        if report.complete and on_report is not None:
            on_report(report, evaluation)
    return state, evaluation


class _Start(NamedTuple):
    """Where a run starts or resumes.

    Attributes:
      state: state at that step.
      seconds: seconds of training so far.
      kept: the last evaluation, empty at the start, and the steps since.
      resume: whether an existing record is continued.
    """

    state: TrainState
    seconds: float
    kept: Kept
    resume: bool


def _columns(steps: Sequence[Line]) -> dict[str, np.ndarray]:
    """The numbers of recorded steps, by name."""
    if not steps:
        return {}
    # Versions of the code before and after an earlier resume may record other metrics.
    names = set.intersection(*(set(step) for step in steps))
    return {name: _column([step[name] for step in steps]) for name in names}


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values])


def _joined(
    begun: Mapping[str, np.ndarray], metrics: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The metrics of a report, from those of its first steps and of the rest."""
    return {
        name: np.concatenate([begun.get(name, column[:0]), column]).astype(column.dtype)
        for name, column in metrics.items()
    }


def _has_ended(earlier: RunRecord | None) -> bool:
    """Whether the run has ended, as the first process sees it."""
    ended = earlier is not None and earlier.summary is not None
    return bool(multihost_utils.broadcast_one_to_all(np.int32(ended)))


def _pause_seconds(checkpoints: Checkpoints) -> float | None:
    """Time to a checkpoint in a report; None for several processes."""
    return checkpoints.seconds if jax.process_count() == 1 else None


def _check_checkpoints(
    path: Path, earlier: RunRecord, checkpoints: Checkpoints
) -> None:
    """Refuses to begin again a run that has a record but no checkpoint.

    A run that was killed before its first checkpoint was due may begin again.
    """
    seconds = earlier.steps[-1]["seconds"] if earlier.steps else 0.0
    pause = _pause_seconds(checkpoints)
    is_long = pause is not None and seconds > checkpoints.every * pause
    if len(earlier.evaluations) < checkpoints.every and not is_long:
        return
    raise ValueError(
        f"the record {str(path)!r} has {len(earlier.steps)} steps ({seconds:.0f} s), "
        f"but there is no checkpoint in {str(checkpoints.directory)!r}; name the "
        "folder with the checkpoints of this run, or move the record away to start "
        "again at step 0"
    )


def _last_step(config: RunConfig, program: Program) -> int:
    reports = config.epochs // config.epochs_per_report
    return reports * program.calls_per_report * program.steps_per_call


def _resumed(path: Path, restored: Restored, last: int) -> _Start:
    seconds = restored.progress["seconds"]
    kept = take_back(path, restored.step) if is_first() else Kept({}, [])
    if kept is not None:
        return _Start(restored.state, seconds, kept, resume=True)
    if restored.step >= last:
        raise ValueError(
            f"record={str(path)!r} does not exist, but the run has a checkpoint at "
            f"step {restored.step}, its last, and nothing is left to record; bring the "
            "record back, or start again with another folder of checkpoints"
        )
    warnings.warn(
        f"the record {str(path)!r} of the steps before {restored.step} is missing, but "
        "a checkpoint exists: the run resumes from it, and a new record begins at "
        f"step {restored.step}",
        stacklevel=3,
    )
    return _Start(restored.state, seconds, Kept({}, []), resume=False)
