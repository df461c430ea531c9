"""Tables of cells, for the terminal and in Markdown."""

import math
from collections.abc import Sequence
from typing import Literal

import rich.table

from experiments.report.cells import Cell

HEADINGS = (
    "method",
    "learning rate",
    "training loss",
    "test accuracy %",
    "gradient-equivalents",
    "seconds",
)
NARROW_HEADINGS = ("method", "lr", "loss", "test %", "grad-equiv.", "seconds")


def rich_table(title: str, cells: Sequence[Cell]) -> rich.table.Table:
    """A table of medians for the terminal; the least loss is bold."""
    table = rich.table.Table(title=title, title_justify="left")
    for column, heading in enumerate(NARROW_HEADINGS):
        justify: Literal["left", "right"] = "left" if column == 0 else "right"
        table.add_column(heading, justify=justify)
    best = _best(cells)
    for cell in cells:
        row = _row(cell, with_range=False)
        table.add_row(*row, style="bold" if cell is best else None)
    return table


def markdown_table(cells: Sequence[Cell]) -> str:
    """A Markdown table with the range over seeds; the least loss is bold."""
    lines = [
        "| " + " | ".join(HEADINGS) + " |",
        "|---|" + "---:|" * (len(HEADINGS) - 1),
    ]
    best = _best(cells)
    for cell in cells:
        row = _row(cell, with_range=True)
        if cell is best:
            row = [f"**{text}**" for text in row]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _best(cells: Sequence[Cell]) -> Cell:
    return min(cells, key=lambda cell: cell.median("train_loss"))


def _row(cell: Cell, *, with_range: bool) -> list[str]:
    return [
        cell.label,
        f"{cell.config.learning_rate:.3g}",
        _with_losses(
            cell, over_seeds(cell, "train_loss", "{:.4f}", with_range=with_range)
        ),
        over_seeds(cell, "test_accuracy", "{:.1f}", with_range=with_range),
        _figure(cell.median("gradient_equivalents"), "{:.0f}"),
        _figure(cell.median("seconds"), "{:.2f}"),
    ]


def over_seeds(cell: Cell, name: str, form: str, *, with_range: bool = True) -> str:
    """The median over seeds and, if asked for, their range; accuracies in per cent."""
    factor = 100.0 if name.endswith("accuracy") else 1.0
    finite = [factor * v for v in cell.values(name) if math.isfinite(v)]
    text = _figure(factor * cell.median(name), form)
    if with_range and len(finite) > 1:
        text += f" [{form.format(min(finite))}, {form.format(max(finite))}]"
    return text


def _with_losses(cell: Cell, text: str) -> str:
    """Adds how many seeds diverged, if any did."""
    values = cell.values("train_loss")
    lost = sum(not math.isfinite(value) for value in values)
    return f"{text} ({lost} of {len(values)} diverged)" if lost else text


def _figure(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "–"
