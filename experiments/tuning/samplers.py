"""Samplers: the hyperparameters of the first trials of a method.

A sampler returns *searches*. A search is a sequence of points, which map names of
hyperparameters to values; its trials are compared with each other and it is extended
separately, along the learning rate. A quasi-random sample is one search; a grid is one
search per variant (for instance, per momentum).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import scipy.stats

from experiments.config import RunConfig
from experiments.optimizers.spaces import ROLES, SearchSpace

Point: TypeAlias = Mapping[str, float]
Search: TypeAlias = tuple[Point, ...]


def log_grid(center: float, points: int, factor: float) -> list[float]:
    """Learning rates around a center, neighbors ``factor`` apart.

    >>> log_grid(0.1, 3, 2.0)
    [0.05, 0.1, 0.2]
    """
    return [center * factor ** (k - (points - 1) / 2) for k in range(points)]


def grid(
    center: float, points: int, factor: float, variants: Sequence[Point] = ({},)
) -> tuple[Search, ...]:
    """The same learning rates for each variant, with one search per variant.

    Args:
      center: geometric mean of the learning rates.
      points: learning rates of each variant.
      factor: ratio of neighboring learning rates.
      variants: values of other hyperparameters.
    """
    rates = log_grid(center, points, factor)
    return tuple(
        tuple({"learning_rate": rate, **variant} for rate in rates)
        for variant in variants
    )


def halton(
    space: SearchSpace, roles: Sequence[str], points: int, seed: int
) -> tuple[Search, ...]:
    """One search, a scrambled Halton sequence in a search space.

    A longer sequence begins with the points of a shorter one. Each role has its column
    of the unit cube, so that all methods get the same places.

    Args:
      space: search space of the method.
      roles: hyperparameters that are searched, by role; those that the space lacks
        are ignored.
      points: length of the sequence.
      seed: seed of the scrambling.
    """
    dimensions = space.dimensions
    places = scipy.stats.qmc.Halton(len(ROLES), scramble=True, seed=seed).random(points)
    return (
        tuple(
            {
                dimensions[role].name: float(dimensions[role].at(place))
                for role, place in zip(ROLES, row, strict=True)
                if role in roles and role in dimensions
            }
            for row in places
        ),
    )


def drawn(
    center: float,
    span: float,
    points: int,
    choices: Mapping[str, Sequence[float]],
    seed: int,
) -> tuple[Search, ...]:
    """One search, a scrambled Halton sequence over learning rate and listed values.

    Methods with as many choices get the same places, and with one center the same
    points on every task.

    Args:
      center: geometric mean of the learning rates.
      span: greatest learning rate over the least.
      points: length of the sequence.
      choices: values of each other hyperparameter that is drawn.
      seed: seed of the scrambling.

    Examples:
      >>> search, = drawn(0.1, 4.0, 3, {"momentum": (0.8, 0.9)}, 0)
      >>> [point["momentum"] for point in search]
      [0.8, 0.9, 0.8]
    """
    halton = scipy.stats.qmc.Halton(1 + len(choices), scramble=True, seed=seed)
    return (
        tuple(
            {
                "learning_rate": float(center * span ** (row[0] - 0.5)),
                **{
                    name: values[int(place * len(values))]
                    for (name, values), place in zip(
                        choices.items(), row[1:], strict=True
                    )
                },
            }
            for row in halton.random(points)
        ),
    )


def with_values(config: RunConfig, values: Mapping[str, float]) -> RunConfig:
    """A configuration with the values of a point.

    ``learning_rate`` and ``l2`` are fields, ``warmup_fraction`` is the share of the
    epochs, every other name is an option of the optimizer. If ``weight_decay`` is among
    them, the loss has no L2 term.
    """
    options = dict(config.optimizer_options)
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("learning_rate", "l2"):
            fields[name] = value
        elif name == "warmup_fraction":
            fields["warmup_epochs"] = value * config.epochs
        else:
            options[name] = value
    if "weight_decay" in values:
        fields["l2"] = 0.0
    return dataclasses.replace(config, optimizer_options=options, **fields)
