"""The curves of the study: a colour for each of a few methods."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments.report.cells import Cell, by_batch_size

# Okabe and Ito's palette, safe for colour blindness; our methods are solid.
LOOKS: dict[tuple[str, bool, bool], tuple[str, str]] = {
    # optimiser, β smoothed, curvature step: colour and dashes
    ("sgd", False, False): ("#999999", "--"),
    ("nesterov", False, False): ("#000000", "--"),
    ("adam", False, False): ("#e69f00", "--"),
    ("muon", False, False): ("#d55e00", "--"),
    ("shampoo", False, False): ("#cc79a7", "--"),
    ("nlcg_pr+", False, False): ("#f0e442", "-"),
    ("nlcg_pr+_orthogonal", False, False): ("#7fbf7b", "-"),
    ("nlcg_pr+_orthogonal", True, False): ("#56b4e9", "-"),
    ("nlcg_pr+_kronecker", True, False): ("#0072b2", "-"),
    ("nlcg_pr+_kronecker", True, True): ("#009e73", "-"),
}
WINDOW = 5  # steps of the running mean


def look_of(cell: Cell) -> tuple[str, str] | None:
    """Colour and dashes of a method that is drawn, else None."""
    options = cell.config.optimizer_options
    smoothed = "beta_smoothing" in options
    return LOOKS.get((cell.config.optimizer, smoothed, "curvature_period" in options))


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draws the objective by steps and by gradient-equivalents, and β."""
    rows = by_batch_size(cells)
    figure, axes = plt.subplots(
        len(rows),
        3,
        figsize=(13, 3.4 * len(rows) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for row, (name, members) in zip(axes, rows.items(), strict=True):
        for cell in members:
            look = look_of(cell)
            if look is None:
                continue
            style = {"color": look[0], "linestyle": look[1], "linewidth": 1.6}
            losses = _median(cell, "loss")
            cost = cell.records[0].series("gradient_equivalents")[: len(losses)]
            row[0].plot(1 + np.arange(len(losses)), losses, label=cell.label, **style)
            row[1].plot(cost, losses, **style)
            if "beta" in cell.records[0].steps[0]:
                betas = _median(cell, "beta")
                row[2].plot(1 + np.arange(len(betas)), betas, **style)
        titles = ("objective by steps", "objective by gradient-equivalents", "β")
        for ax, title in zip(row, titles, strict=True):
            ax.set_title(f"{name}: {title}", loc="left", fontsize=10)
            ax.grid(color="#e6e6e6")
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_yscale("log")
        row[1].set_yscale("log")
        row[2].set_ylim(0, 1)
    handles = {line.get_label(): line for row in axes for line in row[0].get_lines()}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _median(cell: Cell, name: str) -> np.ndarray:
    """The median over seeds, then the mean of the last few steps."""
    series = [record.series(name) for record in cell.records]
    length = min(map(len, series))
    middle = np.median([values[:length] for values in series], axis=0)
    padded = np.concatenate([np.full(WINDOW - 1, middle[0]), middle])
    return np.convolve(padded, np.full(WINDOW, 1 / WINDOW), mode="valid")
