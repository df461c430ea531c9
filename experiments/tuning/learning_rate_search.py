"""The choice of a learning rate from a grid, with the same number of trials for all.

A rate is chosen by a figure of the validation split, its loss unless said otherwise.
Where an optimum lies on the edge of its grid
the grid must grow, and then everybody's does: by points beyond the edge there, by
points between its best one and the neighbours elsewhere.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Criterion: TypeAlias = Literal["train_loss", "validation_loss", "validation_accuracy"]

EXTENSION = 2  # points by which a grid grows at once


class Trial(NamedTuple):
    """A learning rate and what came out, NaN if the run diverged.

    Attributes:
      learning_rate: that was tried.
      train_loss: on the whole training set, at the end.
      validation_loss: on the validation set, at the end.
      validation_accuracy: likewise.
    """

    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float


def log_grid(centre: float, points: int, factor: float) -> list[float]:
    """Learning rates around a centre, neighbours ``factor`` apart."""
    return [centre * factor ** (k - (points - 1) / 2) for k in range(points)]


def best_trial(
    trials: Sequence[Trial], criterion: Criterion = "validation_loss"
) -> Trial:
    """The trial of the least loss or best accuracy; if all diverged, the least rate."""

    def badness(trial: Trial) -> float:
        sign = -1.0 if criterion == "validation_accuracy" else 1.0
        figure = sign * getattr(trial, criterion)
        return figure if math.isfinite(trial.validation_loss) else math.inf

    return min(trials, key=lambda trial: (badness(trial), trial.learning_rate))


def is_on_edge(
    trials: Sequence[Trial], criterion: Criterion = "validation_loss"
) -> bool:
    """Whether the best rate is the least or greatest that was tried."""
    rates = [trial.learning_rate for trial in trials]
    return best_trial(trials, criterion).learning_rate in (min(rates), max(rates))


def extension(
    trials: Sequence[Trial], factor: float, criterion: Criterion = "validation_loss"
) -> list[float]:
    """The rates to try next: beyond the edge if the best is there, else beside it."""
    rates = sorted(trial.learning_rate for trial in trials)
    best = best_trial(trials, criterion).learning_rate
    if best == rates[0]:
        return [best / factor**k for k in range(1, EXTENSION + 1)]
    if best == rates[-1]:
        return [best * factor**k for k in range(1, EXTENSION + 1)]
    place = rates.index(best)
    return [math.sqrt(best * rates[place + side]) for side in (-1, 1)]
