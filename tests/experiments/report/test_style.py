import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.optimizers import OPTIMIZERS, color_of
from experiments.report import style


def test_no_two_series_share_color_and_dashes_nor_color_and_marker():
    # As many option sets of every optimizer as no study has.
    names = itertools.product(range(30), OPTIMIZERS)
    colors = {f"{name} {number}": color_of(name) for number, name in names}
    found = style.looks_of(colors)
    assert len({(look.color, look.dashes) for look in found.values()}) == len(colors)
    assert len({(look.color, look.marker) for look in found.values()}) == len(colors)


def test_the_first_series_of_a_color_has_it_and_neighbors_differ_in_both():
    looks = list(style.looks_of(dict.fromkeys("abcdefghijkl", "#0072b2")).values())
    assert looks[0].color == "#0072b2"
    assert looks[0].dashes == style.DASHES[0]
    for one, other in itertools.pairwise(looks):
        assert one.color != other.color
        assert one.dashes != other.dashes
        assert one.width > other.width


@pytest.mark.parametrize(
    ("low", "high"), [(1e-4, 2.0), (0.2, 3.0), (0.9, 2.75), (1.2, 1.3), (2e-9, 1e9)]
)
def test_a_logarithmic_axis_has_few_plain_labels(low, high):
    figure, axes = plt.subplots()
    axes.plot([low, high], [low, high])
    axes.set(xlim=(low, high), ylim=(low, high))
    for which in ("x", "y"):
        style.set_log_scale(axes, which)
    figure.canvas.draw()
    for axis in (axes.xaxis, axes.yaxis):
        labels = [text.get_text() for text in axis.get_majorticklabels()]
        values = [float(label) for label in labels]  # nothing like 2 x 10^0
        assert 2 <= len(values) <= style.MOST_TICKS + 1
        assert len(set(labels)) == len(labels)
        np.testing.assert_allclose(values, axis.get_majorticklocs(), rtol=1e-5)
        assert low * (1 - 1e-9) <= min(values)
        assert max(values) <= high * (1 + 1e-9)
        assert len(axis.get_minorticklocs()) == 0
    plt.close(figure)


def test_a_legend_is_below_the_panels_and_no_wider_than_the_figure():
    figure, rows = style.new_panels(1, 2)
    for number in range(14):
        label = f"method {number}, with a label of a usual length"
        rows[0][number % 2].plot([0, 1], [0, 1], label=label)
    style.add_legend(figure, rows[0])
    figure.canvas.draw()
    (legend,) = figure.legends
    box, size = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == 14
    assert size.x0 <= box.x0
    assert box.x1 <= size.x1
    for axes in rows[0]:
        assert axes.get_tightbbox().y0 >= box.y1
    plt.close(figure)
