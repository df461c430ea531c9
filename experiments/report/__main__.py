"""``python -m experiments.report FOLDER``: tables and curves from records.

It writes ``report.md`` with a table for each batch size and one of accuracy against
batch size, ``runs.csv`` with the figures of every run, and as PNG the training loss and
the accuracy, if it was measured on the way, against steps, gradient-equivalents and
seconds, the accuracy against the batch size, and β with the angle to steepest descent.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import rich.console
import tyro

from experiments.errors import ending_with_a_message
from experiments.records.files import RunRecord, read_records, record_paths
from experiments.report.batch_sizes import batch_size_table, draw_batch_sizes
from experiments.report.cells import by_batch_size, group
from experiments.report.curves import BETA_WINDOW, LOSS_WINDOW, draw
from experiments.report.progress_curves import draw_progress
from experiments.report.runs_table import write_runs
from experiments.report.tables import markdown_table, rich_table


@dataclasses.dataclass(frozen=True)
class ReportArguments:
    """Makes tables and curves from the records of a folder.

    Attributes:
      records: folder with the records (``*.jsonl``).
      out: where the report goes; the folder above by default.
    """

    records: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None


def write_report(
    records: Sequence[RunRecord], out: Path, console: rich.console.Console
) -> None:
    """Prints the tables and writes the report."""
    cells = group(records)
    out.mkdir(parents=True, exist_ok=True)
    draw(cells, out / "curves.png")
    draw_progress(cells, "loss", out / "loss.png")
    write_runs(cells, out / "runs.csv")
    figures = ["loss", "curves"]
    if any(len(record.evaluations) > 1 for record in records):
        draw_progress(cells, "accuracy", out / "accuracy.png")
        figures.insert(1, "accuracy")
    if len(by_batch_size(cells)) > 1:
        draw_batch_sizes(cells, out / "batch_sizes.png")
        figures.append("batch_sizes")
    shown = "\n\n".join(f"![{name}]({name}.png)" for name in figures)
    parts = [f"{_provenance(records)}\n\n{shown}\n"]
    parts.append(f"\n### Test accuracy %\n\n{batch_size_table(cells)}")
    for name, members in by_batch_size(cells).items():
        steps = len(members[0].records[0].steps)
        title = f"{name}, {steps} steps, median over seeds"
        console.print(rich_table(title, members))
        parts.append(f"\n### {title.capitalize()}\n\n{markdown_table(members)}")
    (out / "report.md").write_text("".join(parts), encoding="utf-8")
    console.print(f"Tables and figures in {out / 'report.md'}.")


def _ended_records(folder: Path) -> list[RunRecord]:
    """The records of a folder, none of which may count as diverged if it was killed."""
    records = read_records(folder, interrupted=True)
    for path, record in zip(record_paths(folder), records, strict=True):
        if record.summary is None and record.stopped is None:
            raise ValueError(
                f"{path} is the record of a run that has not come to its end; repeat "
                "or resume the run, or move the record away"
            )
    return records


def _provenance(records: Sequence[RunRecord]) -> str:
    """Says in a sentence or two where the figures come from."""
    first = records[0]
    versions = ", ".join(
        f"{name} {version}"
        for name, version in first.header["versions"].items()
        if version is not None
    )
    device = first.header["device"]
    seeds = sorted({record.config.seed for record in records})
    commits = dict.fromkeys(record.header["commit"] or "unknown" for record in records)
    return (
        f"Made by `experiments.report` from {len(records)} records: data set "
        f"{first.config.dataset}, model {first.config.model}, seeds "
        f"{', '.join(map(str, seeds))}; median over seeds, with the range in brackets. "
        "The training loss is that of the whole training set after the last step, "
        "without the L2 term; the seconds hold no compilation. The curves are running "
        f"means over {LOSS_WINDOW} steps (loss) and {BETA_WINDOW} steps (β, cosine). "
        f"Device: {device['count']} x {device['kind']}; {versions}; "
        f"commit {', '.join(commits)}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; records that cannot be reported end it with a message."""
    given = tyro.cli(ReportArguments, args=arguments)
    out = given.records.parent if given.out is None else given.out
    with ending_with_a_message("experiments.report", arguments):
        write_report(_ended_records(given.records), out, rich.console.Console())


if __name__ == "__main__":
    main()
