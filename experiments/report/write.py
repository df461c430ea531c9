"""The report: tables and pictures of records, in one folder."""

from collections.abc import Sequence
from pathlib import Path

import rich.console

from experiments.records.files import RunRecord, read_records, record_paths
from experiments.report.cells import Cell, by_batch_size, group
from experiments.report.figures import (
    BETA_WINDOW,
    LOSS_WINDOW,
    draw_beta,
    draw_finals,
    draw_progress,
    has_beta,
    has_steps,
    held_out,
)
from experiments.report.runs_csv import read_runs, write_runs
from experiments.report.tables import ACCURACIES, batch_size_table, final_table


def write_report(
    records: Sequence[RunRecord], out: Path, console: rich.console.Console
) -> None:
    """Prints the tables and writes ``report.md``, its pictures and ``runs.csv``.

    Args:
      records: of runs that are complete or were stopped; without steps, as
        `experiments.report.runs_csv.read_runs` makes them, there are no curves.
      out: folder, which is made.
      console: for the tables.
    """
    cells = group(records)
    out.mkdir(parents=True, exist_ok=True)
    parts = [_provenance(records), *_pictures(cells, out)]
    write_runs(cells, out / "runs.csv")
    groups = by_batch_size(cells)
    for name, (heading, _) in ACCURACIES.items():
        if len(groups) > 1 and any(cell.has(name) for cell in cells):
            table = batch_size_table(cells, name).markdown()
            parts.append(f"### {heading.capitalize()}\n\n{table}")
    for name, members in groups.items():
        title = name[0].upper() + name[1:]
        console.print(final_table(members, with_range=False).terminal(title))
        parts.append(f"### {title}\n\n{final_table(members).markdown()}")
    (out / "report.md").write_text("\n".join(parts), encoding="utf-8")
    console.print(f"Tables and figures in {out / 'report.md'}.")


def read_input(path: Path) -> list[RunRecord]:
    """The runs of a folder of records, or of a CSV file as `write_report` makes it.

    Raises:
      FileNotFoundError: if there is no record.
      ValueError: if a file is no record, or the record of a run that is not complete.
    """
    if path.suffix == ".csv":
        return read_runs(path)
    records = read_records(path, interrupted=True)
    for file, record in zip(record_paths(path), records, strict=True):
        if record.summary is None and record.stopped is None:
            raise ValueError(
                f"{file} is the record of a run that is not complete; repeat or resume "
                "the run, or move the record away"
            )
    return records


def _pictures(cells: Sequence[Cell], out: Path) -> list[str]:
    """Draws what the records allow; returns the lines that show it."""
    drawn = []
    if any(has_steps(cell) for cell in cells):
        draw_progress(cells, "loss", out / "loss.png")
        drawn.append("loss")
        for quantity in held_out(cells):
            draw_progress(cells, quantity, out / f"{quantity}.png")
            drawn.append(quantity)
    if any(has_beta(cell) for cell in cells):
        draw_beta(cells, out / "beta.png")
        drawn.append("beta")
    draw_finals(cells, out / "finals.png")
    drawn.append("finals")
    return [f"![{name.replace('_', ' ')}]({name}.png)\n" for name in drawn]


def _provenance(records: Sequence[RunRecord]) -> str:
    """Says in a few sentences where the figures come from."""
    first = records[0]
    seeds = sorted({record.config.seed for record in records})
    commits = dict.fromkeys(record.header["commit"] or "unknown" for record in records)
    facts = [f"seeds {', '.join(map(str, seeds))}"]
    if "device" in first.header:
        device = first.header["device"]
        versions = [
            f"{name} {version}"
            for name, version in first.header["versions"].items()
            if version is not None
        ]
        facts = [
            f"data set {first.config.dataset}",
            f"model {first.config.model}",
            *facts,
            f"device {device['count']} x {device['kind']}",
            *versions,
        ]
    facts.append(f"commit {', '.join(commits)}")
    text = (
        f"Made by `experiments.report` from {len(records)} runs: {', '.join(facts)}.\n"
        "Figures are medians over seeds, with the range in brackets. The training loss "
        "is that of the whole training set after the last step, without the L2 term. "
        "Seconds exclude compilation."
    )
    if any(record.steps for record in records):
        text += (
            f" Curves of the loss are running means over at least {LOSS_WINDOW} steps, "
            f"those of β and the cosine over {BETA_WINDOW}."
        )
    return text + "\n"
