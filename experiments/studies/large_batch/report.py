"""Tables and pictures of the study, from the existing records."""

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich.console
import scipy.stats

from experiments.records.files import RunRecord, read_record
from experiments.report import style
from experiments.report.cells import LEAST_LOSS, Cell
from experiments.report.figures import draw_progress
from experiments.report.runs_csv import write_runs
from experiments.report.steps_to import (
    best_baseline,
    smoothed_losses,
    steps_table,
    steps_to,
)
from experiments.report.tables import NONE, Column, Table, number
from experiments.studies.large_batch import methods
from experiments.studies.large_batch.methods import Candidate
from experiments.studies.large_batch.plan import (
    Study,
    candidates_of,
    folder_of,
    sweep_of,
)
from experiments.studies.large_batch.settings import csv_path
from experiments.studies.large_batch.tasks import Place
from experiments.tuning.sweep import final_paths

# Groups of the tuned baselines. They are drawn as curves; the rows of all others are in
# the tables.
TUNED = ("lead", "more")
# A row of the table of all places, by group and label.
Row = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Found:
    """The final runs at a place.

    Attributes:
      place: task, batch size and number of steps.
      cells: cells by group and label of the method.
      best: the published baseline, tuned, whose objective is least at the end.
    """

    place: Place
    cells: dict[Row, Cell]
    best: Cell

    def ratio(self, cell: Cell) -> float:
        """Steps to the final objective of the best baseline, over the baseline's steps.

        If the method ends above it, the ratio is the steps of the best baseline over
        the steps that the baseline needs to reach the end of the method: above one.
        """
        target = smoothed_losses(self.best)[-1]
        peer = steps_to(self.best, target)
        steps = steps_to(cell, target)
        if peer is None:
            return math.nan
        if steps is not None:
            return steps / peer
        end = smoothed_losses(cell)[-1]
        reached = steps_to(self.best, end) if math.isfinite(end) else None
        return math.inf if reached is None else peer / reached

    def difference(self, cell: Cell) -> tuple[float, float]:
        """The mean logarithm of the ratio of training losses, and its p-value.

        The losses are those of the whole training set, paired by seed, and count as
        `LEAST_LOSS` below it; the test is the two-sided t-test.
        """
        pairs = [
            (math.log(max(mine, LEAST_LOSS)), math.log(max(other, LEAST_LOSS)))
            for mine, other in zip(
                cell.values("train_loss"), self.best.values("train_loss"), strict=False
            )
            if math.isfinite(mine) and math.isfinite(other)
        ]
        if len(pairs) < 2:
            return math.nan, math.nan
        ours, theirs = np.array(pairs).T
        p_value = scipy.stats.ttest_rel(ours, theirs).pvalue
        return float(np.mean(ours - theirs)), float(p_value)


def write_report(study: Study, out: Path, console: rich.console.Console) -> None:
    """Writes ``report.md``, its pictures and, for each place, a CSV file of the runs.

    They are of all records in the folder, whatever the last call has run.

    Raises:
      ValueError: if there is no place with a tuned baseline and another method.
    """
    found = [one for place in study.places if (one := _found(study, place, out))]
    if not found:
        raise ValueError(
            f"out={str(out)!r} holds no tuned baseline of this study, to which all "
            f"figures are relative; run one of the groups {list(TUNED)} as well"
        )
    parts = [_provenance(found)]
    short = [one for one in found if one.place.steps == study.steps]
    long = [one for one in found if one.place.steps != study.steps]
    for some, heading, name in (
        (short, "Steps to the objective of the best tuned baseline", "ratios.png"),
        (long, "The same in longer runs", "ratios_long.png"),
    ):
        if some:
            parts.append(f"## {heading}\n\n{_overview(some)}")
            draw_ratios(some, out / name)
            parts.append(f"![steps of the best baseline's]({name})\n")
    parts.append(_paired(found))
    for one in found:
        cells = list(one.cells.values())
        table = steps_table(cells, methods.PUBLISHED, best=one.best).markdown()
        runs = csv_path(out, one.place)
        write_runs(cells, runs)
        name = f"loss_{runs.stem}.png"
        drawn = [cell for row, cell in one.cells.items() if row[0] in TUNED]
        draw_progress(drawn, "loss", out / name)
        parts.append(f"## {one.place.title}\n\n{table}\n![losses]({name})\n")
    (out / "report.md").write_text("\n".join(parts), encoding="utf-8")
    console.print(f"Tables and curves in {out / 'report.md'}.")


def _found(study: Study, place: Place, out: Path) -> Found | None:
    cells: dict[Row, Cell] = {}
    for group in methods.GROUPS:
        folder = folder_of(out, place, group)
        if not folder.exists():
            continue
        for candidate in candidates_of(study, group, place, out):
            records = _records(study, place, candidate, folder)
            if records:
                cells[group, candidate.label] = Cell(tuple(records))
    tuned = [cell for row, cell in cells.items() if row[0] in TUNED]
    best = best_baseline(tuned, methods.PUBLISHED)
    return None if best is None else Found(place, cells, best)


def _records(
    study: Study, place: Place, candidate: Candidate, folder: Path
) -> list[RunRecord]:
    """The final runs; none as long as one of them is missing."""
    paths = final_paths(sweep_of(study, place, [candidate]), folder)
    records = []
    with contextlib.suppress(FileNotFoundError):
        records = [read_record(path, interrupted=True) for path in paths]
    done = all(r.summary is not None or r.stopped is not None for r in records)
    return records if done else []


def _rows(found: Sequence[Found]) -> list[Row]:
    """All methods, in the order of the groups."""
    rows = dict.fromkeys(row for one in found for row in one.cells)
    return sorted(rows, key=lambda row: methods.GROUPS.index(row[0]))


def _name(row: Row) -> str:
    kind = {"lead": "", "more": "", "calibrated": ", one setting everywhere"}
    return row[1] + kind.get(row[0], "")


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; NaN without a value, infinite if one is."""
    if not values:
        return math.nan
    return math.exp(statistics.fmean(map(math.log, values)))


def _overview(found: Sequence[Found]) -> str:
    rows = _rows(found)

    def mean_over(some: Sequence[Found]) -> list[str]:
        """Means only of methods that were run at all of these places."""
        fields = []
        for row in rows:
            there = [one.ratio(one.cells[row]) for one in some if row in one.cells]
            complete = len(there) == len(some)
            fields.append(number(geometric_mean(there), 2) if complete else NONE)
        return fields

    columns = [
        Column("method", "method", [_name(row) for row in rows]),
        Column("geometric mean", "mean", mean_over(found)),
        Column(
            "on tasks that nothing was chosen on",
            "fresh",
            mean_over([one for one in found if not one.place.task.chosen_on]),
        ),
    ]
    for one in found:
        fields = [
            number(one.ratio(one.cells[row]), 2) if row in one.cells else NONE
            for row in rows
        ]
        columns.append(Column(one.place.title, one.place.title, fields))
    text = (
        "As a part of that baseline's own steps; the objective is the loss of the "
        "batches, the median over seeds, then a mean of five steps; below 1e-6 it is "
        "rounding and counts as that. Above one: the "
        "method ends above the baseline, which passed its end at that part of the run "
        "(the inverse). The first mean is that of step five, so a figure of a fifth of "
        "the baseline's steps is a bound: at least that.\n\n"
    )
    return text + Table(columns, "").markdown()


def _paired(found: Sequence[Found]) -> str:
    """The presets against the best baseline of each place, seed by seed."""
    ours = [
        row
        for row in _rows(found)
        if row[0] in ("lead", "calibrated") and row[1].startswith("NLCG")
    ]
    lines: dict[str, list[str]] = {
        name: []
        for name in (
            "place",
            "best baseline",
            "method",
            "training loss",
            "of the baseline",
            "log ratio",
            "p",
            "validation accuracy %",
            "of the baseline's",
        )
    }
    for one in found:
        for row in ours:
            if row not in one.cells:
                continue
            cell = one.cells[row]
            mean, p_value = one.difference(cell)
            values = (
                one.place.title,
                one.best.label,
                _name(row),
                f"{cell.median('train_loss'):.4g}",
                f"{one.best.median('train_loss'):.4g}",
                number(mean, 3),
                f"{p_value:.2g}" if math.isfinite(p_value) else NONE,
                number(100 * cell.median("validation_accuracy"), 1),
                number(100 * one.best.median("validation_accuracy"), 1),
            )
            for heading, value in zip(lines, values, strict=True):
                lines[heading].append(value)
    columns = [Column(name, name, fields) for name, fields in lines.items()]
    text = (
        "## Training loss at the end, paired by seed\n\nThe whole training set after "
        "the last step: medians, the mean logarithm of their ratio over seeds and the "
        "p-value of a two-sided paired t-test, not corrected for the number of rows. "
        "Each row is against the baseline that ended best there, chosen afterwards.\n\n"
    )
    return text + Table(columns, "").markdown()


def draw_ratios(found: Sequence[Found], path: Path) -> None:
    """A row per method with a dot per place, and their geometric mean as a bar."""
    rows = [
        row for row in _rows(found) if row[0] in ("lead", "more", "free", "calibrated")
    ]
    with style.styled():
        figure, ((axes,),) = style.new_panels(1, 1, 0.3 * len(rows) + 1.0)
        for height, row in enumerate(reversed(rows)):
            of_row = [
                (one, one.ratio(one.cells[row])) for one in found if row in one.cells
            ]
            finite = [(one, ratio) for one, ratio in of_row if math.isfinite(ratio)]
            for is_chosen, fill in ((True, "none"), (False, "#0072b2")):
                values = [
                    r for one, r in finite if one.place.task.chosen_on is is_chosen
                ]
                axes.plot(
                    values, [height] * len(values), "o", color="#0072b2", mfc=fill
                )
            if finite:
                middle = geometric_mean([ratio for _, ratio in finite])
                axes.plot(middle, height, "|", color="#d55e00", ms=16, mew=2.5)
        axes.axvline(1, color="#999999", linewidth=1)
        axes.set(
            yticks=range(len(rows)),
            yticklabels=[_name(row) for row in reversed(rows)],
            xlabel="steps to the end of the best tuned baseline, over its own",
        )
        style.set_log_scale(axes, "x")
        style.add_remark(
            figure,
            "Dot: a task at a batch size (filled: nothing was chosen on it). "
            "Bar: geometric mean of the dots.",
        )
        style.save(figure, path)


def _provenance(found: Sequence[Found]) -> str:
    records = [r for one in found for c in one.cells.values() for r in c.records]
    commits = sorted({commit or "unknown" for r in records for commit in r.commits})
    seeds = sorted({record.config.seed for record in records})
    chosen = sorted({one.place.task.name for one in found if one.place.task.chosen_on})
    variants = {row for one in found for row in one.cells}
    return (
        "# Large batch\n\nMade by `experiments.studies.large_batch` from "
        f"{len(records)} final runs of {len(variants)} variants: seeds "
        f"{', '.join(map(str, seeds))}; {records[0].header['device']['kind']}; commit "
        f"{', '.join(commits)}. Choices were made on {', '.join(chosen)}.\n"
    )
