"""Pictures of cells: curves over costs, β, and figures at the end of the runs."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from experiments.records.files import Line
from experiments.report import style
from experiments.report.cells import (
    LEAST_LOSS,
    Cell,
    by_batch_size,
    longest_series,
    looks,
    median_by_step,
    short_labels,
)
from experiments.report.style import Look

Quantity = Literal["loss", "validation_accuracy", "test_accuracy"]

AXIS_LABELS = {
    "step": "step",
    "gradient_equivalents": "gradient-equivalents",
    "seconds": "seconds",
    "loss": "training loss of the batch",
    "train_loss": "training loss",
    "validation_accuracy": "validation accuracy, %",
    "test_accuracy": "test accuracy, %",
    "beta": "β",
    "cosine": "cosine of −g and d",
}
COSTS = ("step", "gradient_equivalents", "seconds")
LOSS_WINDOW, BETA_WINDOW = 5, 11  # steps of the running mean
MOST_COLUMNS = 3  # of panels with batch sizes
METHOD_HEIGHT = 0.21  # inches of a method's row
LOG_RATIO = 5.0  # greatest over least loss, above which their axis is logarithmic

Draw = Callable[[Axes, Cell, Look, str], None]


def draw_progress(cells: Sequence[Cell], quantity: Quantity, path: Path) -> None:
    """Draws a quantity against every cost; one row per batch size.

    Gradient-equivalents are left out if they equal the steps everywhere. The loss is
    that of the batches: a median over seeds, then a running mean. An accuracy is that
    of the evaluations: a median, with the range of the seeds shaded. A curve ends where
    half of its seeds (the loss) or one of them (an accuracy) diverged.
    """
    costs = [cost for cost in COSTS if cost != "gradient_equivalents"]
    if not all(_costs_are_steps(cell) for cell in cells if has_steps(cell)):
        costs = list(COSTS)

    def draw_panel(cost: str) -> Draw:
        def draw(axes: Axes, cell: Cell, look: Look, label: str) -> None:
            if quantity == "loss":
                _draw_loss(axes, cell, cost, look, label)
            else:
                _draw_accuracy(axes, cell, quantity, cost, look, label)

        return draw

    def finish(axes: Axes) -> None:
        axes.set_xlim(left=0)
        style.set_linear_ticks(axes, "x", integer=axes.get_xlabel() == "step")
        if quantity == "loss":
            if limit_loss(axes):
                style.set_log_scale(axes, "y")
        else:
            style.set_linear_ticks(axes, "y")

    panels = {(cost, str(quantity)): draw_panel(cost) for cost in costs}
    _draw_rows(cells, [c for c in cells if has_steps(c)], panels, finish, path)


def draw_beta(cells: Sequence[Cell], path: Path) -> None:
    """Draws β and the cosine of −g and d by steps, of the methods that have a β."""

    def draw_panel(name: str) -> Draw:
        def draw(axes: Axes, cell: Cell, look: Look, label: str) -> None:
            middle = median_series(cell, name, BETA_WINDOW)
            axes.plot(_steps(cell), middle, label=label, **look.line())

        return draw

    def finish(axes: Axes) -> None:
        low, high = axes.get_ylim()
        axes.set(xlim=(0, None), ylim=(max(-1.0, min(low, -0.03)), max(high, 1.03)))
        style.set_linear_ticks(axes, "x", integer=True)

    panels = {("step", name): draw_panel(name) for name in ("beta", "cosine")}
    _draw_rows(cells, [c for c in cells if has_beta(c)], panels, finish, path)


def draw_finals(cells: Sequence[Cell], path: Path) -> None:
    """Draws accuracies and training loss at the end of the runs as dots.

    There is a row per quantity and a column per batch size; a panel has a line per
    method, with the median over seeds and a bar over their range.
    """
    groups = by_batch_size(cells)
    names = [
        name
        for name in ("test_accuracy", "validation_accuracy", "train_loss")
        if any(cell.has(name) for cell in cells)
    ]
    methods = list(looks(cells))
    columns = min(len(groups), MOST_COLUMNS)
    rows_each = math.ceil(len(groups) / columns)
    with style.styled():
        figure, rows = style.new_panels(
            len(names) * rows_each, columns, METHOD_HEIGHT * len(methods) + 0.75
        )
        for number, name in enumerate(names):
            of_name = rows[number * rows_each : (number + 1) * rows_each]
            flat = [panel for row in of_name for panel in row]
            _draw_dots(flat, name, cells, methods)
        style.add_remark(figure, "Dot: median over seeds. Bar: their range.")
        style.save(figure, path)


def has_steps(cell: Cell) -> bool:
    """Whether every run of a cell recorded a step."""
    return all(record.steps for record in cell.records)


def has_beta(cell: Cell) -> bool:
    """Whether every run of a cell recorded a β."""
    return has_steps(cell) and all("beta" in r.steps[0] for r in cell.records)


def median_series(cell: Cell, name: str, window: int) -> np.ndarray:
    """The median over seeds, then a running mean.

    NaN from where half diverged, and at steps that no record holds.
    """
    middle = median_by_step(cell, name)
    middle = np.where(np.isfinite(middle), middle, np.nan)
    is_long = len(middle) > window
    padded = np.pad(middle, window // 2, mode="reflect" if is_long else "edge")
    return np.lib.stride_tricks.sliding_window_view(padded, window).mean(axis=1)


def limit_loss(axes: Axes) -> bool:
    """Sets limits for a logarithmic axis; returns whether anything can be drawn on it.

    Spikes far above the first losses and what is below `LEAST_LOSS` are cut off.
    """
    curves = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    positive = [found for c in curves if (found := c[np.isfinite(c) & (c > 0)]).size]
    if positive:
        lowest = max(min(curve.min() for curve in positive), LEAST_LOSS)
        highest = max(curve.max() for curve in positive)
        highest = min(highest, 2 * max(curve[0] for curve in positive))
        margin = max(highest / lowest, 1.01) ** 0.05
        axes.set_ylim(lowest / margin, highest * margin)
    return bool(positive)


def held_out(cells: Sequence[Cell]) -> list[Quantity]:
    """The accuracies that were measured in every evaluation, if a run has several."""
    names: tuple[Quantity, ...] = ("validation_accuracy", "test_accuracy")
    records = [record for cell in cells for record in cell.records]
    return [
        name
        for name in names
        if any(len(record.evaluations) > 1 for record in records)
        and all(name in line for record in records for line in record.evaluations)
    ]


def _draw_rows(
    cells: Sequence[Cell],
    drawn: Sequence[Cell],
    panels: Mapping[tuple[str, str], Draw],
    finish: Callable[[Axes], None],
    path: Path,
) -> None:
    """A figure with a row per batch size and a column per pair of axes.

    Labels and looks are those that all cells have together, so that a method looks the
    same in every picture of a report.
    """
    groups, look_of = by_batch_size(drawn), looks(cells)
    labels = dict(zip(map(id, cells), short_labels(cells), strict=True))
    with style.styled():
        figure, rows = style.new_panels(len(groups), len(panels))
        for row, (size, members) in zip(rows, groups.items(), strict=True):
            row[0].set_title(size[0].upper() + size[1:])
            for axes, ((across, up), draw) in zip(row, panels.items(), strict=True):
                axes.set(xlabel=AXIS_LABELS[across])
                for cell in members:
                    label = labels[id(cell)]
                    draw(axes, cell, look_of[label], label)
                if axes is row[0] or len({up for _, up in panels}) > 1:
                    axes.set_ylabel(AXIS_LABELS[up])
                finish(axes)
        style.add_legend(figure, [row[0] for row in rows])
        style.save(figure, path)


def _draw_loss(axes: Axes, cell: Cell, cost: str, look: Look, label: str) -> None:
    # An odd window, of a fortieth of a long run.
    window = max(LOSS_WINDOW, cell.steps // 40 // 2 * 2 + 1)
    losses = median_series(cell, "loss", window)
    places = _steps(cell) if cost == "step" else longest_series(cell, cost)
    axes.plot(places, losses, label=label, **look.line())


def _draw_accuracy(
    axes: Axes, cell: Cell, name: str, cost: str, look: Look, label: str
) -> None:
    by_step = [{line["step"]: line for line in r.evaluations} for r in cell.records]
    shared = [step for step in by_step[0] if all(step in lines for lines in by_step)]
    points: list[list[Line]] = [[lines[step] for lines in by_step] for step in shared]
    if not points:
        return
    places = [statistics.median(line[cost] for line in point) for point in points]
    accuracies = [[100 * line[name] for line in point] for point in points]
    middles = [statistics.median(found) for found in accuracies]
    axes.plot(places, middles, label=label, marker=look.marker, **look.line())
    axes.fill_between(
        places,
        [min(found) for found in accuracies],
        [max(found) for found in accuracies],
        color=look.color,
        alpha=0.1,
        linewidth=0,
    )


def _draw_dots(
    panels: Sequence[Axes], name: str, cells: Sequence[Cell], methods: Sequence[str]
) -> None:
    """One quantity: a panel per batch size with a line per method."""
    look_of = looks(cells)
    labels = dict(zip(map(id, cells), short_labels(cells), strict=True))
    factor = 100.0 if name.endswith("accuracy") else 1.0
    groups = by_batch_size(cells)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    spread: list[float] = []
    for axes, (size, members) in zip(panels, groups.items(), strict=False):
        for cell in members:
            label = labels[id(cell)]
            place, look = methods.index(label), look_of[label]
            finite = [factor * v for v in cell.values(name) if math.isfinite(v)]
            middle = factor * cell.median(name)
            if math.isfinite(middle):
                ends = (min(finite), max(finite))
                spread += ends
                axes.hlines(place, *ends, color=look.color, linewidth=2)
                axes.plot(middle, place, **look.dots(label=label))
            if lost := len(cell.records) - len(finite):
                axes.annotate(
                    f"{lost} of {len(cell.records)} diverged",
                    (0.98, place),
                    xycoords=("axes fraction", "data"),
                    horizontalalignment="right",
                    verticalalignment="center",
                    color="#555555",
                    fontsize=8.5,
                )
        first = axes in panels[::MOST_COLUMNS]
        axes.set_yticks(range(len(methods)), methods if first else [""] * len(methods))
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_title(size[0].upper() + size[1:])
        axes.set_xlabel(AXIS_LABELS[name])
        axes.tick_params(axis="y", length=0)
    for axes in panels[: len(groups)]:
        _limit_dots(axes, spread, is_loss=name == "train_loss")


def _limit_dots(axes: Axes, ends: Sequence[float], *, is_loss: bool) -> None:
    """Equal limits for all batch sizes, and a logarithmic axis for distant losses."""
    if not ends:
        return
    low, high = min(ends), max(ends)
    if is_loss and low > 0 and high > LOG_RATIO * low:
        axes.set_xlim(0.85 * low, 1.15 * high)
        style.set_log_scale(axes, "x")
    else:
        margin = 0.04 * (high - low) or 0.1
        axes.set_xlim(low - margin, high + margin)
        style.set_linear_ticks(axes, "x")


def _costs_are_steps(cell: Cell) -> bool:
    return all(
        record.series("gradient_equivalents") == [s["step"] + 1 for s in record.steps]
        for record in cell.records
    )


def _steps(cell: Cell) -> np.ndarray:
    return np.arange(1, cell.steps + 1)
