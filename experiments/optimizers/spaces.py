"""Search spaces: the ranges in which the hyperparameters of an optimizer are tuned.

A space has one dimension per role: the learning rate, the memory (a momentum, or the
upper bound of β), the weight decay and the warm-up. All learning rates are peaks of a
cosine schedule and span the same factor, so that equal budgets are equally dense.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

ROLES = ("learning_rate", "memory", "decay", "warmup")
LEARNING_RATE_SPAN = 300.0  # greatest over least


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A hyperparameter and its range.

    Attributes:
      name: ``learning_rate``, ``l2``, ``warmup_fraction`` or an option of an optimizer.
      low: least value.
      high: greatest value.
      scale: scale on which values are uniform: ``log``, ``linear``, or ``one_minus``
        for the logarithm of the distance to one, as for a momentum.
    """

    name: str
    low: float
    high: float
    scale: Literal["log", "linear", "one_minus"] = "log"

    def at(self, place: float) -> float:
        """The value at a place in [0, 1].

        >>> Dimension("momentum", 0.9, 0.99, "one_minus").at(1.0)
        0.99
        """
        if self.scale == "linear":
            return self.low + place * (self.high - self.low)
        if self.scale == "log":
            return self.low * (self.high / self.low) ** place
        return 1 - (1 - self.low) * ((1 - self.high) / (1 - self.low)) ** place


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """A search space.

    Attributes:
      dimensions: the dimensions by role, in the order of `ROLES`.
      options: options of the optimizer that the search sets but does not vary.
    """

    dimensions: Mapping[str, Dimension]
    options: Mapping[str, int | float | str | bool] = dataclasses.field(
        default_factory=dict
    )


L2 = Dimension("l2", 1e-5, 1e-3)
DECOUPLED = Dimension("weight_decay", 1e-3, 1.0)
IN_TRUST_RATIO = Dimension("weight_decay", 1e-5, 1e-3)


def space_around(
    learning_rate: float,
    memory: str | Dimension | None = None,
    decay: Dimension = L2,
    **options: int | float | str | bool,
) -> SearchSpace:
    """The search space around a learning rate.

    Args:
      learning_rate: geometric mean of the range.
      memory: a dimension, or the name of an option that is searched like a momentum,
        from 0.8 to 0.99; None if the optimizer has no such option.
      decay: `L2` for a penalty in the loss, `DECOUPLED` for the option
        ``weight_decay``, or another dimension.
      **options: options that the search sets but does not vary.

    Examples:
      >>> list(space_around(0.1, "momentum").dimensions)
      ['learning_rate', 'memory', 'decay', 'warmup']
    """
    reach = math.sqrt(LEARNING_RATE_SPAN)
    dimensions = {
        "learning_rate": Dimension(
            "learning_rate", learning_rate / reach, learning_rate * reach
        ),
        "decay": decay,
        "warmup": Dimension("warmup_fraction", 0.0, 0.25, "linear"),
    }
    if isinstance(memory, str):
        memory = Dimension(memory, 0.8, 0.99, "one_minus")
    if memory is not None:
        dimensions["memory"] = memory
    return SearchSpace({r: dimensions[r] for r in ROLES if r in dimensions}, options)
