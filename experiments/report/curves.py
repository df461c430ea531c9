"""Curves of cells as one figure: loss, β and the angle to steepest descent.

What other figures of cells share, colours above all, is here too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.optimizers import color_of
from experiments.report.cells import Cell, by_batch_size, short_labels

# The color is that of the optimizer, the dashes tell the preconditioner.
SOLID, DASHED, DOTTED = "-", (0, (5, 1.5)), (0, (1, 1.3))
DASH_DOTTED = (0, (5, 1.5, 1, 1.5))
LINE_WIDTH, DOT_WIDTH = 1.6, 2.6  # dots stay visible on a line of their own colour
LOSS_WINDOW, BETA_WINDOW = 5, 11  # steps of the running mean
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "grid.color": "#e6e6e6",
    "font.size": 10,
}


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draws the figure: a row for each batch size, a column for each quantity."""
    rows = by_batch_size(cells)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows),
            4,
            figsize=(17, 3.9 * len(rows) + 1.3),
            squeeze=False,
            width_ratios=(1.25, 1.25, 1, 1),
            layout="constrained",
        )
        for row, (name, members) in zip(axes, rows.items(), strict=True):
            _draw_row(row, name, members)
        add_legend(figure, [row[0] for row in axes])
        figure.savefig(path, dpi=130)
        plt.close(figure)


def look(cell: Cell, label: str) -> dict[str, Any]:
    """How the lines of a cell are drawn."""
    dashes = _dashes(cell)
    return {
        "color": color_of(cell.config.optimizer),
        "linestyle": dashes,
        "linewidth": DOT_WIDTH if dashes is DOTTED else LINE_WIDTH,
        "label": label,
    }


def add_legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """One legend for all axes, below them."""
    handles = {line.get_label(): line for axes in all_axes for line in axes.get_lines()}
    figure.legend(
        list(handles.values()),
        [str(label) for label in handles],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        handlelength=3.4,
    )


def _draw_row(row: Sequence[Axes], name: str, cells: Sequence[Cell]) -> None:
    loss, cost, beta, cosine = row
    for cell, label in zip(cells, short_labels(cells), strict=True):
        style = look(cell, label)
        longest = max(cell.records, key=lambda record: len(record.steps))
        steps = np.arange(1, len(longest.steps) + 1)
        losses = median_series(cell, "loss", LOSS_WINDOW)
        loss.plot(steps, losses, **style)
        cost.plot(longest.series("gradient_equivalents"), losses, **style)
        if "beta" in longest.steps[0]:
            beta.plot(steps, median_series(cell, "beta", BETA_WINDOW), **style)
            cosine.plot(steps, median_series(cell, "cosine", BETA_WINDOW), **style)
    for axes in (loss, cost):
        axes.set_yscale("log")
        limit_loss(axes)
    beta.set_ylim(-0.03, 1.03)
    cosine.set_ylim(-0.03, 1.03)
    titles = ("loss by steps", "loss by cost", "β", "cosine of −g and d")
    for axes, title in zip(row, titles, strict=True):
        axes.set_title(f"{name}: {title}", fontsize=10.5)
        axes.set_xlabel("gradient-equivalents" if axes is cost else "step")
        axes.set_xlim(left=0)
    loss.set_ylabel("training loss of the batch")


def median_series(cell: Cell, name: str, window: int) -> np.ndarray:
    """The median over seeds, then a running mean; NaN from where half diverged."""
    series = [record.series(name) for record in cell.records]
    length = max(map(len, series))
    values = np.full([len(series), length], np.inf)  # also behind the end of a run
    for row, found in zip(values, series, strict=True):
        row[: len(found)] = np.where(np.isfinite(found), found, np.inf)
    middle = np.median(values, axis=0)
    middle = np.where(np.isfinite(middle), middle, np.nan)
    padded = np.pad(middle, window // 2, mode="reflect" if length > window else "edge")
    return np.lib.stride_tricks.sliding_window_view(padded, window).mean(axis=1)


def limit_loss(axes: Axes) -> None:
    """Leaves out spikes far above the first losses."""
    curves = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    finite = [found for c in curves if (found := c[np.isfinite(c)]).size]
    if finite:
        first = max(curve[0] for curve in finite)
        highest = max(curve.max() for curve in finite)
        lowest = min(curve.min() for curve in finite)
        axes.set_ylim(0.8 * lowest, min(2 * first, 1.2 * highest))


def _dashes(cell: Cell) -> str | tuple[int, tuple[float, ...]]:
    options = cell.config.optimizer_options
    preconditioner = options.get("preconditioner")
    if preconditioner in ("orthogonal", "kronecker"):
        return DOTTED
    if options.get("beta_smoothing"):
        return DASH_DOTTED
    if preconditioner == "rms":
        return DASHED
    secant = preconditioner == "secant" or cell.config.optimizer == "paper_nlcg"
    return DOTTED if secant else SOLID
