"""Loss and accuracy against steps, gradient-equivalents and seconds."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.records.files import Line
from experiments.report.cells import Cell, by_batch_size, short_labels
from experiments.report.curves import (
    LOSS_WINDOW,
    STYLE,
    add_legend,
    limit_loss,
    look,
    median_series,
)

Quantity = Literal["loss", "accuracy"]

COSTS = {
    "step": "step",
    "gradient_equivalents": "gradient-equivalents",
    "seconds": "seconds",
}


def draw_progress(cells: Sequence[Cell], quantity: Quantity, path: Path) -> None:
    """Draws a row for each batch size and a column for each kind of cost.

    The loss is that of the batches, a median over seeds and a running mean; the
    accuracy that of the evaluations, on images that are not trained on, with the range
    of the seeds as a shadow. Runs that diverged end where they did.
    """
    rows = by_batch_size(cells)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows),
            len(COSTS),
            figsize=(13, 3.4 * len(rows) + 1.1),
            squeeze=False,
            layout="constrained",
        )
        for row, (name, members) in zip(axes, rows.items(), strict=True):
            labels = short_labels(members)
            for panel, (cost, title) in zip(row, COSTS.items(), strict=True):
                for cell, label in zip(members, labels, strict=True):
                    draw_line = _draw_loss if quantity == "loss" else _draw_accuracy
                    draw_line(panel, cell, cost, label)
                panel.set_title(f"{name}: {quantity} by {title}", fontsize=10.5)
                panel.set_xlabel(title)
                panel.set_xlim(left=0)
                if quantity == "loss":
                    panel.set_yscale("log")
                    limit_loss(panel)
            row[0].set_ylabel(
                "training loss of the batch" if quantity == "loss" else "accuracy %"
            )
        add_legend(figure, [row[0] for row in axes])
        figure.savefig(path, dpi=100)
        plt.close(figure)


def _draw_loss(axes: Axes, cell: Cell, cost: str, label: str) -> None:
    longest = max(cell.records, key=lambda record: len(record.steps))
    places = (
        np.arange(1, len(longest.steps) + 1) if cost == "step" else longest.series(cost)
    )
    # An odd window, of a fortieth of a long run.
    window = max(LOSS_WINDOW, len(longest.steps) // 40 // 2 * 2 + 1)
    axes.plot(places, median_series(cell, "loss", window), **look(cell, label))


def _draw_accuracy(axes: Axes, cell: Cell, cost: str, label: str) -> None:
    points = list(
        zip(*(record.evaluations for record in cell.records), strict=False)
    )  # as far as every seed came
    if not points:
        return
    places = [statistics.median(line[cost] for line in point) for point in points]
    accuracies = [[100 * held_out_accuracy(line) for line in p] for p in points]
    style = look(cell, label)
    axes.plot(places, [statistics.median(p) for p in accuracies], marker="o", **style)
    axes.fill_between(
        places,
        [min(p) for p in accuracies],
        [max(p) for p in accuracies],
        color=style["color"],
        alpha=0.12,
        linewidth=0,
    )


def held_out_accuracy(evaluation: Line) -> float:
    """On the validation images, or on the test images where there are none."""
    name = (
        "validation_accuracy"
        if "validation_accuracy" in evaluation
        else "test_accuracy"
    )
    return float(evaluation[name])
