"""One style for all pictures: fonts, colors, dashes, markers, ticks and legends.

A picture is at most `WIDTH` inches wide, so that its text is readable where a README
scales it to the width of a page.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("agg")  # files only, no screen

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

WIDTH = 9.6  # inches
DPI = 120
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.markersize": 5.5,
}

Dashes = tuple[int, tuple[float, ...] | None]

DASHES: tuple[Dashes, ...] = (
    (0, None),
    (0, (5, 1.6)),
    (0, (1.2, 1.2)),
    (0, (5, 1.4, 1.2, 1.4)),
    (0, (9, 2)),
    (0, (2.6, 1.3)),
    (0, (5, 1.3, 1.2, 1.3, 1.2, 1.3)),
)
WIDEST, THINNEST = 2.4, 1.4  # points
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SHADES = 3
MOST_TICKS = 7
ROUND = [1, 2, 2.5, 5, 10]  # steps between ticks, times powers of ten
LEGEND_HANDLE = 0.75  # inches of a legend's column besides its text
LETTER = 0.078  # inches, the mean width of a letter in a legend


class Look(NamedTuple):
    """How one series is drawn.

    Attributes:
      color: a hexadecimal color.
      dashes: dashes of its line, as a Matplotlib line style.
      marker: marker of its dots.
      width: width of its line; lines that are drawn later are thinner, so that a line
        shows under one that covers it.
    """

    color: str
    dashes: Dashes
    marker: str
    width: float

    def line(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot`` for a line."""
        return {
            "color": self.color,
            "linestyle": self.dashes,
            "linewidth": self.width,
            **changes,
        }

    def dots(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot`` for dots without a line."""
        return {
            "color": self.color,
            "linestyle": "none",
            "marker": self.marker,
            **changes,
        }


def looks_of(colors: Mapping[str, Any]) -> dict[str, Look]:
    """A look for each series; no two share both color and dashes.

    Series of one color get different dashes and shades of it, in their order. Markers
    go with dashes.

    Args:
      colors: the color of each series by its label.

    Examples:
      >>> looks = looks_of({"A": "#0072b2", "B": "#0072b2", "C": "#d55e00"})
      >>> looks["A"].color, looks["C"].color
      ('#0072b2', '#d55e00')
      >>> looks["A"].dashes == looks["B"].dashes
      False
    """
    places: dict[str, int] = {}
    looks: dict[str, Look] = {}
    taken: set[tuple[str, Dashes]] = set()
    for label, color in colors.items():
        base = to_hex(color)
        while True:
            place = places.get(base, 0)
            places[base] = place + 1
            # 7 dashes and 3 shades have no common factor: neighbors differ in both.
            level = place % SHADES + SHADES * (place // (SHADES * len(DASHES)))
            kind = place % len(DASHES)
            shade, dashes = _shaded(base, level), DASHES[kind]
            if (shade, dashes) not in taken:  # as shades of two colors may be
                break
        taken.add((shade, dashes))
        thinner = (WIDEST - THINNEST) * len(looks) / max(1, len(colors) - 1)
        looks[label] = Look(shade, dashes, MARKERS[kind], WIDEST - thinner)
    return looks


def _shaded(color: str, level: int) -> str:
    """A color itself at level 0, then in turns darker and lighter."""
    share = 0.62 ** ((level + 1) // 2)  # of the color; the rest is black or white
    towards = 0.0 if level % 2 else 1.0
    return to_hex([share * part + (1 - share) * towards for part in to_rgb(color)])


def styled() -> Any:
    """A context in which all that is drawn has the style."""
    return plt.rc_context(STYLE)


class Panels(NamedTuple):
    """A figure with its panels.

    Attributes:
      figure: the Matplotlib figure.
      rows: the axes of each row.
    """

    figure: Figure
    rows: list[list[Axes]]


def new_panels(rows: int, columns: int, height: float = 2.7, **settings: Any) -> Panels:
    """An empty figure as wide as a page.

    Args:
      rows: number of rows of panels.
      columns: number of columns of panels.
      height: height of a row, in inches.
      **settings: for ``matplotlib.pyplot.subplots``.
    """
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH, height * rows),
        squeeze=False,
        layout="constrained",
        **settings,
    )
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return Panels(figure, [list(row) for row in axes])


def add_legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all axes, below them, as many columns wide as fit."""
    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    column = LEGEND_HANDLE + LETTER * max(map(len, handles))
    columns = max(1, min(len(handles), int(figure.get_figwidth() / column)))
    rows = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.25 + 0.21 * rows)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        handlelength=3.2,
    )


def add_remark(figure: Figure, text: str) -> None:
    """A line above all panels that says how to read them."""
    figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=9.5)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure and closes it."""
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def log_ticks(low: float, high: float, fewest: int = 3) -> list[float]:
    """Ticks of a logarithmic axis: decades, else 1-2-5, else round numbers.

    Args:
      low: lower limit of the axis.
      high: upper limit.
      fewest: least number of ticks; with fewer, the next of the three is used.

    Examples:
      >>> log_ticks(1e-3, 2.0)
      [0.001, 0.01, 0.1, 1.0]
      >>> log_ticks(0.3, 12.0)
      [0.5, 1.0, 2.0, 5.0, 10.0]
      >>> log_ticks(1.1, 2.6)
      [1.25, 1.5, 1.75, 2.0, 2.25, 2.5]
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for heads in ((1,), (1, 2, 5)):
        ticks = [
            float(f"{head}e{exponent}") for exponent in exponents for head in heads
        ]
        found = [tick for tick in ticks if low <= tick <= high]
        if len(found) >= fewest:
            return found[:: math.ceil(len(found) / MOST_TICKS)]
    ticks = [
        float(f"{tick:.12g}")
        for tick in MaxNLocator(MOST_TICKS, steps=ROUND).tick_values(low, high)
    ]
    return [tick for tick in ticks if low <= tick <= high]


def set_log_scale(axes: Axes, which: str, ticks: Sequence[float] | None = None) -> None:
    """Makes an axis logarithmic, with plain numbers at few ticks.

    Call it when all has been drawn and the limits are set: the ticks stay.

    Args:
      axes: axes of the panel.
      which: ``"x"`` or ``"y"``.
      ticks: where they are; chosen by `log_ticks` by default.
    """
    axes.set(**{f"{which}scale": "log"})
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    # Labels beside each other need more room than labels above each other.
    fewest = 2 if which == "x" else 3
    axis.set_major_locator(FixedLocator(ticks or log_ticks(low, high, fewest)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.set_minor_locator(NullLocator())


def plain_number(value: float) -> str:
    """A number as one would write it: no power of ten between 1e-4 and 1e6.

    Examples:
      >>> [plain_number(value) for value in (0.001, 2.0, 4096.0, 1e-6)]
      ['0.001', '2', '4096', '1e-6']
    """
    text = f"{value:.6g}"
    mantissa, has_exponent, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if has_exponent else text


def set_linear_ticks(axes: Axes, which: str, *, integer: bool = False) -> None:
    """A few ticks at round numbers."""
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5, integer=integer, steps=ROUND, min_n_ticks=3))
