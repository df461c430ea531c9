"""Accuracy against batch size, as in the table of arXiv 1812.02886, with its spread."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from experiments.report.cells import Cell, batch_size_name, short_labels
from experiments.report.curves import STYLE, add_legend, look
from experiments.report.tables import over_seeds


def batch_size_table(cells: Sequence[Cell]) -> str:
    """A Markdown table: a row for each batch size, a column for each method.

    A field is the median test accuracy over seeds with their range; the best median of
    a row is bold.
    """
    found = _by_method(cells)
    lines = [
        "| batch | steps | " + " | ".join(found) + " |",
        "|---|" + "---:|" * (1 + len(found)),
    ]
    for size in _sizes(cells):
        row = {name: cells_of.get(size) for name, cells_of in found.items()}
        there = [cell for cell in row.values() if cell is not None]
        best = max(there, key=_accuracy)
        steps = max(len(cell.records[0].steps) for cell in there)
        fields = []
        for cell in row.values():
            text = "" if cell is None else over_seeds(cell, "test_accuracy", "{:.1f}")
            fields.append(f"**{text}**" if cell is best else text)
        lines.append(f"| {size or 'full'} | {steps} | " + " | ".join(fields) + " |")
    return "\n".join(lines) + "\n"


def draw_batch_sizes(cells: Sequence[Cell], path: Path) -> None:
    """Draws the medians as lines and the ranges over seeds as bars."""
    sizes = _sizes(cells)
    found = _by_method(cells)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(10.5, 5.6), layout="constrained")
        for number, (label, cells_of) in enumerate(found.items()):
            shift = 0.04 * (number - (len(found) - 1) / 2)  # so that bars do not hide
            places, middles, below, above = [], [], [], []
            for place, size in enumerate(sizes):
                cell = cells_of.get(size)
                if cell is None or not math.isfinite(_accuracy(cell)):
                    continue
                finite = [v for v in cell.values("test_accuracy") if math.isfinite(v)]
                places.append(place + shift)
                middles.append(100 * _accuracy(cell))
                below.append(middles[-1] - 100 * min(finite))
                above.append(100 * max(finite) - middles[-1])
            style = look(next(iter(cells_of.values())), label)
            axes.plot(places, middles, marker="o", **style)
            axes.errorbar(
                places, middles, (below, above), fmt="none", ecolor=style["color"]
            )
        axes.set_xticks(range(len(sizes)), [batch_size_name(size) for size in sizes])
        axes.set_ylabel("test accuracy %, median and range of the seeds")
        axes.set_title("Test accuracy by batch size, as many epochs for all")
        add_legend(figure, [axes])
        figure.savefig(path, dpi=100)
        plt.close(figure)


def _sizes(cells: Sequence[Cell]) -> list[int | None]:
    found = {cell.config.batch_size for cell in cells}
    return sorted(found, key=lambda size: size or math.inf)


def _by_method(cells: Sequence[Cell]) -> dict[str, dict[int | None, Cell]]:
    methods: dict[str, dict[int | None, Cell]] = {}
    for cell, label in zip(cells, short_labels(cells), strict=True):
        methods.setdefault(label, {})[cell.config.batch_size] = cell
    return methods


def _accuracy(cell: Cell) -> float:
    """The median, below everything if half of the seeds diverged."""
    median = cell.median("test_accuracy")
    return median if math.isfinite(median) else -math.inf
