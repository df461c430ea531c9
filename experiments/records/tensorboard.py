"""Metrics for TensorBoard, beside the record of a run."""

from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX import SummaryWriter

from experiments.records.files import Line
from experiments.training import Report


class TensorBoard:
    """Writes what each report holds; a context manager.

    Args:
      folder: folder of this run; TensorBoard shows all folders below a given one.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, report: Report, evaluation: Line) -> None:
        """Adds the metrics of the steps of a report, and the evaluation after them.

        What an interrupted run wrote for later steps is hidden.
        """
        last = int(report.state.step)
        first = last - len(report.metrics["loss"])
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=first)
        for name, column in report.metrics.items():
            # A version of the code before a resume may have lacked the first values.
            for step, value in enumerate(column, start=last - len(column)):
                self._writer.add_scalar(f"step/{name}", value, step)
        for name, value in evaluation.items():
            if name != "step":
                self._writer.add_scalar(f"evaluation/{name}", value, last)
        self._writer.flush()
