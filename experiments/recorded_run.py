"""One run from its first step to its summary, with the record it leaves."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import RunConfig
from experiments.data import Dataset
from experiments.records import Line, RecordWriter
from experiments.training import (
    CompiledProgram,
    DivergedError,
    Report,
    check_finite,
    run_epochs,
)

OnReport = Callable[[Report, Line], None]


def record_run(
    path: Path,
    compiled: CompiledProgram,
    config: RunConfig,
    dataset: Dataset,
    *,
    trials: Iterable[Line] = (),
    on_report: OnReport | None = None,
    overwrite: bool = False,
) -> Line:
    """Trains, evaluates and writes the record.

    Args:
      path: of the record.
      compiled: the compiled program of ``config``.
      config: of the run.
      dataset: what to train and evaluate on.
      trials: of the search that chose the learning rate, to be kept in the record.
      on_report: called after each compiled call with its report and evaluation.
      overwrite: whether an existing record is replaced.

    Returns:
      The summary.

    Raises:
      DivergedError: if the loss is not finite; the record then says so.
      FileExistsError: if the record exists and ``overwrite`` is False.
    """
    program = compiled.program
    seconds = 0.0
    with RecordWriter(path, config, overwrite=overwrite) as writer:
        for trial in trials:
            writer.write("trial", trial)
        state = program.init(config.seed, config.learning_rate)
        for report in run_epochs(compiled, config, dataset, state):
            state = report.state
            _write_steps(writer, report, program.gradient_equivalents, seconds)
            seconds += report.seconds
            try:
                check_finite(report, config)
            except DivergedError as error:
                writer.write("stopped", {"reason": str(error)})
                raise
            evaluation = {
                "step": int(state.step),
                "images_per_second": len(report.metrics["loss"])
                * program.batch_size
                / report.seconds,
                **_named("train", program.evaluate(state, dataset.train)),
            }
            if dataset.validation is not None:
                evaluation |= _named(
                    "validation", program.evaluate(state, dataset.validation)
                )
            writer.write("evaluation", evaluation)
            if on_report is not None:
                on_report(report, evaluation)
        summary = {
            **evaluation,
            **_named("test", program.evaluate(state, dataset.test)),
            "gradient_equivalents": program.gradient_equivalents * int(state.step),
            "seconds": seconds,
            "compile_seconds": compiled.compile_seconds,
        }
        writer.write("summary", summary)
    return summary


def _named(split: str, evaluation: Any) -> Line:
    return {f"{split}_{name}": float(v) for name, v in evaluation._asdict().items()}


def _write_steps(
    writer: RecordWriter, report: Report, cost: float, seconds_before: float
) -> None:
    """Writes each step; the seconds of a compiled call are shared out equally."""
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
