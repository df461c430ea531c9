"""Trials of one search: which is the best, and where the next ones belong.

Trials are compared by one metric, the criterion. If the best learning rate is at the
edge of those tried, the search must be extended beyond the edge; a search that is
extended only along with another method's gets points next to its best one instead.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Criterion: TypeAlias = Literal["train_loss", "validation_loss", "validation_accuracy"]

EXTENSION = 2  # points by which a search grows at a time


class Trial(NamedTuple):
    """A learning rate and the final metrics of its run, NaN if the run diverged.

    Attributes:
      learning_rate: peak of the schedule.
      train_loss: loss on the whole training set.
      validation_loss: loss on the validation set.
      validation_accuracy: accuracy on the validation set.
    """

    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float


def badness(trial: Trial, criterion: Criterion) -> float:
    """The criterion as a number to be minimized, infinite if the run diverged."""
    if criterion != "validation_accuracy":
        value = getattr(trial, criterion)
        return value if math.isfinite(value) else math.inf
    finite = math.isfinite(trial.validation_loss)
    return -trial.validation_accuracy if finite else math.inf


def best_trial(
    trials: Sequence[Trial], criterion: Criterion = "validation_loss"
) -> Trial:
    """The best trial by the criterion; if all diverged, the least learning rate."""
    return min(trials, key=lambda t: (badness(t, criterion), t.learning_rate))


def best_number(
    trials: Sequence[Trial], criterion: Criterion = "validation_loss"
) -> int:
    """The index of the best trial."""
    return trials.index(best_trial(trials, criterion))


def is_on_edge(
    trials: Sequence[Trial], criterion: Criterion = "validation_loss"
) -> bool:
    """Whether the best learning rate is the least or greatest that was tried."""
    rates = [trial.learning_rate for trial in trials]
    return best_trial(trials, criterion).learning_rate in (min(rates), max(rates))


def extension(
    trials: Sequence[Trial], factor: float, criterion: Criterion = "validation_loss"
) -> list[float]:
    """Two more learning rates.

    Beyond the edge, ``factor`` and ``factor**2`` away, if the best rate is there;
    otherwise the geometric means of the best rate and its two neighbors.
    """
    rates = sorted(trial.learning_rate for trial in trials)
    best = best_trial(trials, criterion).learning_rate
    if best == rates[0]:
        return [best / factor**k for k in range(1, EXTENSION + 1)]
    if best == rates[-1]:
        return [best * factor**k for k in range(1, EXTENSION + 1)]
    place = rates.index(best)
    return [math.sqrt(best * rates[place + side]) for side in (-1, 1)]
