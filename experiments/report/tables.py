"""Tables of cells, in Markdown and for the terminal."""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, NamedTuple

import rich.box
import rich.table

from experiments.optimizers import finds_learning_rate
from experiments.report.cells import Cell, batch_size_name, by_method

NONE = "–"
NOT_TUNED = "not tuned"
MOST_DECIMALS = 5
ACCURACIES = {
    "validation_accuracy": ("validation accuracy %", "val. %"),
    "test_accuracy": ("test accuracy %", "test %"),
}


class Column(NamedTuple):
    """One column of a table.

    Attributes:
      heading: heading in Markdown.
      short: heading in the terminal.
      fields: one per row.
    """

    heading: str
    short: str
    fields: list[str]


class Table(NamedTuple):
    """Columns of which no two are the same.

    Attributes:
      columns: the first names the rows.
      note: what the columns that were left out say; empty if none were.
      best: numbers of the rows that are bold.
    """

    columns: list[Column]
    note: str
    best: Collection[int] = ()

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The fields of each row."""
        return list(zip(*(column.fields for column in self.columns), strict=True))

    def markdown(self) -> str:
        """The table in Markdown, with the note below it."""
        count = len(self.columns)
        lines = [
            _markdown_row(column.heading for column in self.columns),
            "|---|" + "---:|" * (count - 1),
        ]
        for number, row in enumerate(self.rows):
            is_best = number in self.best
            lines.append(_markdown_row(f"**{t}**" if is_best else t for t in row))
        text = "\n".join(lines) + "\n"
        return f"{text}\n{self.note}\n" if self.note else text

    def terminal(self, title: str) -> rich.table.Table:
        """The table for the terminal."""
        table = rich.table.Table(
            title=title,
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
            caption=self.note or None,
            caption_justify="left",
        )
        for place, column in enumerate(self.columns):
            justify: Literal["left", "right"] = "right" if place else "left"
            table.add_column(column.short, justify=justify)
        for number, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if number in self.best else None)
        return table


def make_table(columns: Sequence[Column], best: Collection[int] = ()) -> Table:
    """A table without columns that say nothing new.

    A column is left out if it is empty, if it repeats another, or if at least two rows
    all agree on it; the note then says what it said.
    """
    kept: list[Column] = []
    everywhere, repeated = [], []
    for column in columns:
        if set(column.fields) == {NONE}:
            continue
        twin = next((one for one in kept[1:] if one.fields == column.fields), None)
        if kept and len(column.fields) > 1 and len(set(column.fields)) == 1:
            everywhere.append(f"{column.heading} {column.fields[0]}")
        elif twin is not None:
            repeated.append(f"{column.heading} equal {twin.heading}")
        else:
            kept.append(column)
    notes = []
    if everywhere:
        notes.append(f"In every row: {', '.join(everywhere)}.")
    if repeated:
        notes.append(f"In every row, {', and '.join(repeated)}.")
    return Table(kept, " ".join(notes), best)


def final_table(cells: Sequence[Cell], *, with_range: bool = True) -> Table:
    """Figures at the end of the runs: medians over seeds; the least loss is bold.

    Args:
      cells: one per row.
      with_range: whether the range over seeds follows each median.
    """

    def figures(name: str, digits: int, *, ranges: bool) -> list[str]:
        return column_fields(cells, name, digits, with_range=ranges)

    rates = [rate_field(cell) for cell in cells]
    columns = [
        Column("method", "method", [cell.label for cell in cells]),
        Column("learning rate", "lr", rates),
        Column(
            "training loss",
            "train loss",
            with_failures(cells, figures("train_loss", 4, ranges=with_range)),
        ),
    ]
    for name, headings in ACCURACIES.items():
        if any(cell.has(name) for cell in cells):
            columns.append(Column(*headings, figures(name, 3, ranges=with_range)))
    costs = (
        ("steps", "steps", [str(cell.steps) for cell in cells]),
        (
            "gradient-equivalents",
            "gradients",
            figures("gradient_equivalents", 1, ranges=False),
        ),
        ("seconds", "seconds", figures("seconds", 2, ranges=False)),
    )
    columns += [Column(*cost) for cost in costs]
    return make_table(columns, best_rows(cells, "train_loss", min))


def batch_size_table(cells: Sequence[Cell], name: str = "test_accuracy") -> Table:
    """An accuracy in percent: one row per batch size, one column per method.

    The best median of a row is bold.

    Args:
      cells: cells of all batch sizes.
      name: name of the accuracy in the summaries.
    """
    methods = by_method(cells)
    sizes = sorted({c.config.batch_size for c in cells}, key=lambda s: s or math.inf)
    columns = [Column("batch", "batch", [str(size or "full") for size in sizes])]
    steps = []
    for size in sizes:
        steps.append(max(c.steps for c in cells if c.config.batch_size == size))
    columns.append(Column("steps", "steps", [str(count) for count in steps]))
    rows = [[of.get(batch_size_name(s)) for of in methods.values()] for s in sizes]
    bold: list[Collection[int]] = []
    for row in rows:
        there = [(place, cell) for place, cell in enumerate(row) if cell is not None]
        best = best_rows([cell for _, cell in there], name, max)
        bold.append([there[number][0] for number in best])
    for place, label in enumerate(methods):
        fields = []
        for row, is_best in zip(rows, bold, strict=True):
            cell = row[place]
            text = "" if cell is None else column_fields([cell], name, 3)[0]
            fields.append(f"**{text}**" if place in is_best else text)
        columns.append(Column(label, label, fields))
    return Table(columns, "")


def rate_field(cell: Cell) -> str:
    """The learning rate, or that there was none to choose."""
    if finds_learning_rate(cell.config.optimizer):
        return NOT_TUNED
    return f"{cell.config.learning_rate:.3g}"


def column_fields(
    cells: Sequence[Cell], name: str, digits: int, *, with_range: bool = True
) -> list[str]:
    """A figure of the summaries, one text per cell, with equal decimals for all.

    Args:
      cells: one per row.
      name: name of the figure; accuracies are given in percent with one decimal.
      digits: significant digits of the least median.
      with_range: whether the range over seeds follows the median in brackets.
    """
    if name.endswith("accuracy"):
        factor, decimals = 100.0, 1
    else:
        medians = [cell.median(name) for cell in cells]
        factor, decimals = 1.0, decimals_for(medians, digits)
    fields = []
    for cell in cells:
        finite = [factor * v for v in cell.values(name) if math.isfinite(v)]
        text = number(factor * cell.median(name), decimals)
        if with_range and len(finite) > 1:
            ends = (number(end, decimals) for end in (min(finite), max(finite)))
            text += f" [{', '.join(ends)}]"
        fields.append(text)
    return fields


def decimals_for(values: Sequence[float], digits: int) -> int:
    """Decimals that give the least of some numbers this many significant digits.

    Examples:
      >>> decimals_for([0.0312, 1.5], 2), decimals_for([80.0, 112.0], 1)
      (3, 0)
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if not sizes:
        return 1
    return min(MOST_DECIMALS, max(0, digits - 1 - math.floor(math.log10(min(sizes)))))


def number(value: float, decimals: int) -> str:
    """A number with this many decimals; large and tiny ones in scientific notation.

    Examples:
      >>> number(0.80312, 3), number(14275249700864.0, 3), number(float("inf"), 3)
      ('0.803', '1.43e+13', '–')
      >>> number(2e-7, 3), number(0.0, 3)
      ('2.0e-07', '0.000')
    """
    if not math.isfinite(value):
        return NONE
    if 0 < abs(value) < 0.5 * 10.0**-decimals:
        return f"{value:.1e}"
    return f"{value:.2e}" if abs(value) >= 1e6 else f"{value:.{decimals}f}"


def median_and_range(values: Sequence[float], decimals: int = 1) -> str:
    """The median of some numbers, and their range in brackets.

    Examples:
      >>> median_and_range([71.26, 70.0, 73.5, 70.5])
      '70.9 [70.0, 73.5]'
    """
    middle, low, high = (
        f"{found:.{decimals}f}"
        for found in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} [{low}, {high}]"


def with_failures(cells: Sequence[Cell], fields: Sequence[str]) -> list[str]:
    """Adds to each text how many seeds diverged, if any did."""
    texts = []
    for cell, text in zip(cells, fields, strict=True):
        count = f" ({cell.failures} of {len(cell.records)} diverged)"
        texts.append(text + count if cell.failures else text)
    return texts


def best_rows(
    cells: Sequence[Cell], name: str, choose: Callable[[Sequence[float]], float]
) -> list[int]:
    """The numbers of the rows with the best median, none if no median is finite."""
    medians = [cell.median(name) for cell in cells]
    finite = [median for median in medians if math.isfinite(median)]
    return [i for i, m in enumerate(medians) if finite and m == choose(finite)]


def _markdown_row(fields: Iterable[str]) -> str:
    return f"| {' | '.join(fields)} |"
