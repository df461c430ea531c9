import math

import pytest

from experiments.tuning.trials import (
    Trial,
    best_number,
    best_trial,
    extension,
    is_on_edge,
)


def trials(*pairs):
    return [Trial(rate, 0.0, loss, 0.0) for rate, loss in pairs]


def test_a_run_that_diverged_is_never_chosen():
    found = trials((0.1, 2.0), (0.2, 1.0), (0.4, math.nan), (0.8, math.inf))
    assert best_trial(found).learning_rate == 0.2
    assert best_number(found) == 1
    assert not is_on_edge(found)


@pytest.mark.parametrize(
    ("criterion", "chosen"),
    [("train_loss", 0.4), ("validation_loss", 0.1), ("validation_accuracy", 0.2)],
)
def test_the_criterion_chooses(criterion, chosen):
    found = [
        Trial(0.1, 2.0, 1.0, 0.5),
        Trial(0.2, 2.0, 2.0, 0.9),
        Trial(0.4, 1.0, math.nan, math.nan),  # without a validation set
    ]
    assert best_trial(found, criterion).learning_rate == chosen


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
def test_every_search_gets_two_more_points(losses, expected):
    found = trials(*zip((0.1, 0.2, 0.4), losses))
    assert extension(found, 2.0) == pytest.approx(expected)
