import math

import pytest

from experiments.tuning.learning_rate_search import (
    Trial,
    best_trial,
    extension,
    is_on_edge,
    log_grid,
)


def trials(*pairs):
    return [Trial(rate, 0.0, loss, 0.0) for rate, loss in pairs]


def test_a_grid_is_centred():
    assert log_grid(0.1, 3, 2.0) == pytest.approx([0.05, 0.1, 0.2])
    assert log_grid(0.1, 4, 4.0) == pytest.approx([0.0125, 0.05, 0.2, 0.8])


def test_what_diverged_is_never_chosen():
    found = trials((0.1, 2.0), (0.2, 1.0), (0.4, math.nan), (0.8, math.inf))
    assert best_trial(found).learning_rate == 0.2
    assert not is_on_edge(found)


def test_if_all_diverged_the_search_goes_down():
    found = trials((0.2, math.nan), (0.1, math.nan))
    assert best_trial(found).learning_rate == 0.1
    assert is_on_edge(found)
    assert extension(found, 2.0) == pytest.approx([0.05, 0.025])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((1.0, 2.0, 3.0), [0.05, 0.025]),
        ((3.0, 2.0, 1.0), [0.8, 1.6]),
        ((3.0, 1.0, 2.0), [0.2 / math.sqrt(2), 0.2 * math.sqrt(2)]),
    ],
)
def test_everybody_gets_the_same_number_of_further_points(losses, expected):
    found = trials(*zip((0.1, 0.2, 0.4), losses, strict=True))
    assert extension(found, 2.0) == pytest.approx(expected)
