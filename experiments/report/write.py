"""The report: tables and pictures of records, in one folder."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rich.console

from experiments.records.files import RunRecord, read_records, record_paths
from experiments.report.cells import Cell, by_batch_size, group, key_of
from experiments.report.figures import (
    BETA_WINDOW,
    LOSS_WINDOW,
    Quantity,
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
      records: records of runs that are complete or were stopped. Those without steps,
        from `experiments.report.runs_csv.read_runs`, give no curves.
      out: folder, which is created.
      console: console for the tables.
    """
    cells = group(records)
    out.mkdir(parents=True, exist_ok=True)
    write_runs(cells, out / "runs.csv")
    pictures = _pictures(cells)
    shown = [f"![{name.replace('_', ' ')}]({name}.png)\n" for name in pictures]
    parts = [_provenance(records), *shown]
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
    for name, draw in pictures.items():
        draw(out / f"{name}.png")
    console.print(f"Tables and figures in {out / 'report.md'}.")


def read_input(path: Path) -> list[RunRecord]:
    """The runs of a folder of records, or of a CSV file as `write_report` makes it.

    Raises:
      FileNotFoundError: if there is no record.
      ValueError: if a file is not a record, or the record of a run that is not
        complete, or repeats another with the same settings and seed.
    """
    if path.suffix == ".csv":
        records = read_runs(path)
        lines = range(2, len(records) + 2)
        _check_distinct(records, [f"{path}:{line}" for line in lines])
        return records
    records = read_records(path, interrupted=True)
    files = record_paths(path)
    for file, record in zip(files, records, strict=True):
        if record.summary is None and record.stopped is None:
            raise ValueError(
                f"{file} is the record of a run that is not complete; repeat or resume "
                "the run, or move the record away"
            )
    _check_distinct(records, files)
    return records


def _check_distinct(records: Sequence[RunRecord], places: Sequence[Path | str]) -> None:
    first: dict[tuple[str, int], Path | str] = {}
    for place, record in zip(places, records, strict=True):
        run = (key_of(record.config), record.config.seed)
        if run in first:
            raise ValueError(
                f"{first[run]} and {place} are runs with the same settings and "
                f"seed={record.config.seed}; move one of them away"
            )
        first[run] = place


def _pictures(cells: Sequence[Cell]) -> dict[str, Callable[[Path], None]]:
    """The pictures that the records allow, each a function that draws it."""
    pictures: dict[str, Callable[[Path], None]] = {}
    if any(has_steps(cell) for cell in cells):
        quantities: list[Quantity] = ["loss", *held_out(cells)]
        for quantity in quantities:
            pictures[quantity] = functools.partial(draw_progress, cells, quantity)
    if any(has_beta(cell) for cell in cells):
        pictures["beta"] = functools.partial(draw_beta, cells)
    pictures["finals"] = functools.partial(draw_finals, cells)
    return pictures


def _provenance(records: Sequence[RunRecord]) -> str:
    """Says in a few sentences where the figures come from."""
    headers = [record.header for record in records]
    configs = [record.config for record in records if "config" in record.header]
    devices = [header["device"] for header in headers if "device" in header]
    versions = [header["versions"] for header in headers if "versions" in header]
    packages = dict.fromkeys(name for found in versions for name in found)
    found: dict[str, list[Any]] = {
        "data set": [config.dataset for config in configs],
        "model": [config.model for config in configs],
        "seeds": sorted(record.config.seed for record in records),
        "device": [f"{device['count']} x {device['kind']}" for device in devices],
        **{name: [of.get(name) for of in versions] for name in packages},
        "commit": [commit or "unknown" for r in records for commit in r.commits],
    }
    facts = []
    for name, values in found.items():
        distinct = dict.fromkeys(str(value) for value in values if value is not None)
        if distinct:
            facts.append(f"{name} {', '.join(distinct)}")
    text = (
        f"Made by `experiments.report` from {len(records)} runs: {'; '.join(facts)}.\n"
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
