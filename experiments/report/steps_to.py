"""How many steps a method needs to the end of the best baseline, as a table.

The comparison is by the objective: the loss of the (augmented) batches with its L2
term, which is what an optimizer minimizes. The training loss of the tables has neither.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np

from experiments.records.files import mean_over_steps
from experiments.report.cells import LEAST_LOSS, Cell, longest_series, median_by_step
from experiments.report.tables import (
    NONE,
    NOT_TUNED,
    Column,
    Table,
    column_fields,
    make_table,
    number,
    rate_field,
    with_failures,
)

WINDOW = 5  # steps of the running mean


def steps_table(
    cells: Sequence[Cell],
    baselines: Collection[str],
    untuned: Sequence[Cell] = (),
    best: Cell | None = None,
) -> Table:
    """Figures of each method and its steps to the end of the best baseline.

    The least training loss is first and the best baseline is bold.

    Args:
      cells: one per row.
      baselines: names of optimizers.
      untuned: cells whose learning rate was not tuned.
      best: one of the cells; None for the best of all baselines.
    """
    cells = sorted(cells, key=lambda cell: cell.median("train_loss"))
    best = best or best_baseline(cells, baselines)
    target = math.nan if best is None else smoothed_losses(best)[-1]
    peer = None if best is None else steps_to(best, target)
    steps = [steps_to(cell, target) for cell in cells]
    costs = [
        None if n is None else longest_series(cell, "gradient_equivalents")[n - 1]
        for cell, n in zip(cells, steps, strict=True)
    ]
    ratios = [None if n is None or peer is None else n / peer for n in steps]
    columns = {
        "method": [
            cell.label + ("" if len(cell.records) > 1 else " (one trial)")
            for cell in cells
        ],
        "learning rate": [
            NOT_TUNED if cell in untuned else rate_field(cell) for cell in cells
        ],
        "training loss": with_failures(cells, column_fields(cells, "train_loss", 4)),
        "validation accuracy %": column_fields(cells, "validation_accuracy", 3),
        "steps to objective": [_optional(n, 0) for n in steps],
        "of best baseline": [_optional(ratio, 2) for ratio in ratios],
        "gradient-equivalents to objective": [_optional(cost, 0) for cost in costs],
        "seconds": column_fields(cells, "seconds", 2, with_range=False),
        "mean β": [number(mean_over_steps(cell.records, "beta"), 2) for cell in cells],
    }
    bold = [place for place, cell in enumerate(cells) if cell is best]
    return make_table([Column(h, h, fields) for h, fields in columns.items()], bold)


def best_baseline(cells: Sequence[Cell], baselines: Collection[str]) -> Cell | None:
    """The baseline whose objective is least at the end, None if there is none.

    Among equals it is the first one.
    """
    ends = [
        (smoothed_losses(cell)[-1], cell)
        for cell in cells
        if cell.config.optimizer in baselines
    ]
    ends = [(loss, cell) for loss, cell in ends if math.isfinite(loss)]
    if not ends:
        return None
    return min(ends, key=lambda pair: (pair[0], steps_to(pair[1], pair[0])))[1]


def smoothed_losses(cell: Cell) -> np.ndarray:
    """Objectives of the batches: the median over seeds, then the mean of five steps.

    Entry t is of steps t - 4 to t; a run that diverged counts as infinite, and a mean
    below `LEAST_LOSS` as `LEAST_LOSS`. It is NaN where the records hold no such step.
    """
    middle = median_by_step(cell, "loss")
    if len(middle) < WINDOW:
        return np.full(len(middle), np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(middle, WINDOW)
    means = np.maximum(windows.mean(axis=1), LEAST_LOSS)
    return np.concatenate([np.full(WINDOW - 1, np.inf), means])


def steps_to(cell: Cell, target: float) -> int | None:
    """The first step at which the smoothed loss is at the target, None if none is."""
    reached = np.flatnonzero(smoothed_losses(cell) <= target)
    return int(reached[0]) + 1 if reached.size else None


def _optional(value: float | None, decimals: int) -> str:
    return NONE if value is None else number(value, decimals)
