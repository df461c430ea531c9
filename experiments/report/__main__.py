"""``python -m experiments.report RUNS``: tables and pictures from records.

RUNS is a folder with records (``*.jsonl``), or the ``runs.csv`` of an earlier report.
The report is ``report.md`` with one table per batch size, ``runs.csv`` with the figures
of every run, and PNG files: training loss and accuracy against steps,
gradient-equivalents and seconds; β and the angle to steepest descent; and the figures
at the end of the runs.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import rich.console
import tyro

from experiments.errors import ending_with_a_message
from experiments.report.write import read_input, write_report


@dataclasses.dataclass(frozen=True)
class ReportArguments:
    """Makes tables and pictures from records.

    Attributes:
      runs: folder with records (*.jsonl), or the runs.csv of an earlier report; a CSV
        file holds no steps, so there are no curves.
      out: folder of the report; by default the folder that holds the records, or for a
        CSV file a folder with its name beside it.
    """

    runs: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; records that cannot be reported end it with a message."""
    given = tyro.cli(
        ReportArguments, prog="python -m experiments.report", args=arguments
    )
    is_csv = given.runs.suffix == ".csv"
    out = given.out or (given.runs.with_suffix("") if is_csv else given.runs.parent)
    module, again = "experiments.report", "start again with"
    with ending_with_a_message(module, arguments, again=again):
        write_report(read_input(given.runs), out, rich.console.Console())


if __name__ == "__main__":
    main()
