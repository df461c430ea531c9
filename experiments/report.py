"""``python -m experiments.report FOLDER``: tables and curves from records."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import rich.console
import tyro

from experiments.cells import by_batch_size, group
from experiments.curves import BETA_WINDOW, LOSS_WINDOW, draw
from experiments.records import RunRecord, read_records
from experiments.tables import markdown_table, rich_table


@dataclasses.dataclass(frozen=True)
class ReportArguments:
    """Makes tables and curves from the records of a folder.

    Attributes:
      records: folder with the records (``*.jsonl``).
      out: where report.md and curves.png go; the folder above by default.
    """

    records: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None


def write_report(
    records: Sequence[RunRecord], out: Path, console: rich.console.Console
) -> None:
    """Prints the tables; writes ``report.md`` and ``curves.png``."""
    cells = group(records)
    out.mkdir(parents=True, exist_ok=True)
    parts = [f"{_provenance(records)}\n\n![Curves](curves.png)\n"]
    for name, members in by_batch_size(cells).items():
        steps = len(members[0].records[0].steps)
        title = f"{name}, {steps} steps, median over seeds"
        console.print(rich_table(title, members))
        parts.append(f"\n### {title.capitalize()}\n\n{markdown_table(members)}")
    (out / "report.md").write_text("".join(parts), encoding="utf-8")
    draw(cells, out / "curves.png")
    console.print(f"Tables in {out / 'report.md'}, curves in {out / 'curves.png'}.")


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
    return (
        f"Made by `experiments.report` from {len(records)} records: data set "
        f"{first.config.dataset}, model {first.config.model}, seeds "
        f"{', '.join(map(str, seeds))}; median over seeds, with the range in brackets. "
        "The training loss is that of the whole training set after the last step, "
        "without the L2 term; the seconds hold no compilation. The curves are running "
        f"means over {LOSS_WINDOW} steps (loss) and {BETA_WINDOW} steps (β, cosine). "
        f"Device: {device['count']} x {device['kind']}; {versions}; "
        f"commit {first.header['commit'] or 'unknown'}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(ReportArguments, args=arguments)
    out = given.records.parent if given.out is None else given.out
    write_report(read_records(given.records), out, rich.console.Console())


if __name__ == "__main__":
    main()
