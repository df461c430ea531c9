"""The lines that a report leaves in a record: steps, an evaluation, and the summary."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.config import RunConfig
from experiments.data import AnyDataset, Split
from experiments.records.files import Line, RecordWriter
from experiments.training import (
    DivergedError,
    Evaluation,
    Program,
    Report,
    TrainState,
    check_finite,
    diverged,
)


def record_steps(
    writer: RecordWriter,
    report: Report,
    program: Program,
    config: RunConfig,
    seconds: float,
) -> None:
    """Writes the steps of a report.

    Args:
      writer: the record of the run.
      report: the steps, and the state after them.
      program: the functions of the run.
      config: settings of the run.
      seconds: time of training before the report.

    Raises:
      DivergedError: if a loss or a weight is not finite; the record then says so.
    """
    _write_steps(writer, report, program.gradient_equivalents, seconds)
    with _stopping(writer):
        check_finite(report, config)


def record_evaluation(
    writer: RecordWriter,
    report: Report,
    program: Program,
    dataset: AnyDataset,
    config: RunConfig,
    seconds: float,
) -> Line:
    """Evaluates after a report and writes the figures, which are returned.

    Args:
      writer: the record of the run.
      report: the steps since the last evaluation, and the state after them.
      program: the functions of the run.
      dataset: what to evaluate on.
      config: settings of the run.
      seconds: time of training so far.

    Raises:
      DivergedError: if a loss is not finite; the record then says so.
    """
    evaluation = _evaluation_of(report, program, dataset, seconds)
    writer.write("evaluation", evaluation)
    with _stopping(writer):
        _check_losses(evaluation, config)
    return evaluation


def record_summary(
    writer: RecordWriter,
    state: TrainState,
    evaluation: Line,
    program: Program,
    dataset: AnyDataset,
    config: RunConfig,
) -> Line:
    """Evaluates on the test set after the last step and writes the summary.

    Args:
      writer: the record of the run.
      state: the last state.
      evaluation: the last evaluation; its figures are part of the summary.
      program: the functions of the run.
      dataset: what to evaluate on.
      config: settings of the run.

    Raises:
      DivergedError: if a loss is not finite; the record then says so.
    """
    statistics = program.statistics(state, dataset.train)
    found = program.evaluate(state, dataset.test, statistics)
    summary = {**evaluation, **_named("test", found)}
    if config.ema_decay:
        unaveraged = state._replace(average=state.params)
        last = program.evaluate(unaveraged, dataset.test, state.batch_stats)
        summary |= _named("test_unaveraged", last)
    with _stopping(writer):
        _check_losses(summary, config)
    writer.write("summary", summary)
    return summary


@contextlib.contextmanager
def _stopping(writer: RecordWriter) -> Iterator[None]:
    """Records why a run that diverged is stopped."""
    try:
        yield
    except DivergedError as error:
        writer.write("stopped", {"reason": str(error)})
        raise


def _check_losses(evaluation: Line, config: RunConfig) -> None:
    """Raises DivergedError if a loss on a whole split is not finite."""
    for name, value in evaluation.items():
        if name.endswith("_loss") and not math.isfinite(value):
            what = f"{name} became {value} after {evaluation['step']} steps"
            raise diverged(what, config)


def _named(split: str, evaluation: Any) -> Line:
    """Loss and accuracy, with the name of the split as a prefix."""
    return {f"{split}_{name}": float(v) for name, v in evaluation._asdict().items()}


def _evaluation_of(
    report: Report, program: Program, dataset: AnyDataset, seconds: float
) -> Line:
    """Loss and accuracy on whole splits, with the cost so far."""
    state = report.state
    steps = len(report.metrics["loss"])
    statistics = program.statistics(state, dataset.train)
    line = {
        "step": int(state.step),
        "gradient_equivalents": program.gradient_equivalents * int(state.step),
        "seconds": seconds,
        "images_per_second": steps * program.batch_size / report.seconds,
        **_named("train", _on_training_data(program, report, dataset, statistics)),
    }
    if dataset.validation is None:  # nothing is left to choose
        return line | _named("test", program.evaluate(state, dataset.test, statistics))
    found = program.evaluate(state, dataset.validation, statistics)
    return line | _named("validation", found)


def _on_training_data(
    program: Program, report: Report, dataset: AnyDataset, statistics: Any
) -> Evaluation:
    """Loss and accuracy; of a stream, which is read once, means over the last steps.

    The loss is that of the labels, as on a whole split.
    """
    if isinstance(dataset.train, Split):
        return program.evaluate(report.state, dataset.train, statistics)
    metrics = report.metrics
    return Evaluation(metrics["label_loss"].mean(), metrics["accuracy"].mean())


def _write_steps(
    writer: RecordWriter, report: Report, cost: float, seconds_before: float
) -> None:
    """Writes each step; the seconds of a compiled call are divided equally."""
    count = len(report.metrics["loss"])
    first = int(report.state.step) - count
    seconds = seconds_before + report.seconds * np.arange(1, count + 1) / count
    for row in range(count):
        writer.write(
            "step",
            {
                "step": first + row,
                **{name: column[row] for name, column in report.metrics.items()},
                "gradient_equivalents": cost * (first + row + 1),
                "seconds": seconds[row],
            },
        )
