"""Where the hyperparameters of every optimiser are searched.

A space has a dimension for each role: the learning rate, the memory (momentum, or the
cap of β), the decay of the weights and the warm-up. All learning rates span the same
factor, so that equal budgets are equally dense; the learning rates themselves are those
of a cosine schedule's peak.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from experiments.config import RunConfig
from experiments.optimizers import NLCG_RULES, OPTIMIZERS
from experiments.preconditioners import PRECONDITIONERS
from experiments.registry import look_up

ROLES = ("learning_rate", "memory", "decay", "warmup")
LEARNING_RATE_SPAN = 300.0  # greatest over least


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A hyperparameter and its range.

    Attributes:
      name: ``learning_rate``, ``l2``, ``warmup_fraction`` or an optimiser's option.
      low: least value.
      high: greatest value.
      scale: along which values are uniform: ``log``, ``linear``, or ``one_minus`` for
        the logarithm of the distance to one, as for a momentum.
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
    """The dimensions of an optimiser by role, and its options that are not searched."""

    dimensions: Mapping[str, Dimension]
    options: Mapping[str, int | float] = dataclasses.field(default_factory=dict)


def _space(
    learning_rate: float,
    memory: str | Dimension | None,
    decay: Dimension,
    **options: int | float,
) -> SearchSpace:
    """A space around a learning rate."""
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


_L2 = Dimension("l2", 1e-5, 1e-3)
_DECOUPLED = Dimension("weight_decay", 1e-3, 1.0)
_IN_TRUST_RATIO = Dimension("weight_decay", 1e-5, 1e-3)
# The paper's β knows no other cap than one; how soon the loss brakes it is its number.
_THRESHOLD = Dimension("threshold", 0.3, 3.0)

# By preconditioner: the middle of the learning rates, and how weights decay.
_NLCG_BY_PRECONDITIONER = {
    "": (0.2, _L2),
    "rms": (0.005, _DECOUPLED),
    "secant": (0.2, _L2),
    "hutchinson": (0.1, _DECOUPLED),
    "equilibration": (0.1, _DECOUPLED),
    "bartlett": (0.1, _DECOUPLED),
    "orthogonal": (0.02, _DECOUPLED),
    "kronecker": (0.02, _DECOUPLED),
}


def _nlcg_space(rule: str, preconditioner: str) -> SearchSpace:
    learning_rate, decay = _NLCG_BY_PRECONDITIONER[preconditioner]
    if rule in ("replay", "subspace"):  # β is given, or solved for
        return _space(learning_rate, None, decay)
    if rule == "constant":
        return _space(learning_rate, "beta", decay)
    # What mini-batch noise does to β calls for smoothing wherever P g is scaled.
    smoothing = {} if preconditioner in ("", "secant") else {"beta_smoothing": 0.9}
    return _space(learning_rate, "beta_max", decay, **smoothing)


SEARCH_SPACES: dict[str, SearchSpace] = {
    "sgd": _space(0.5, None, _L2),
    "heavy_ball": _space(0.2, "momentum", _L2),
    "nesterov": _space(0.2, "momentum", _L2),
    "rmsprop": _space(0.2, "momentum", _L2),
    "adam": _space(0.005, "b1", _L2),
    "adamw": _space(0.005, "b1", _DECOUPLED),
    "lars": _space(5.0, "momentum", _IN_TRUST_RATIO),
    "lamb": _space(0.02, "b1", _DECOUPLED),
    "muon": _space(0.02, "momentum", _DECOUPLED),
    "shampoo": _space(0.02, "momentum", _DECOUPLED),
    "lbfgs": _space(0.2, None, _L2),
    **{
        f"nlcg_{rule}{preconditioner and '_'}{preconditioner}": _nlcg_space(
            rule, preconditioner
        )
        for rule in NLCG_RULES
        for preconditioner in PRECONDITIONERS
    },
    **{
        name: _space(0.2, None if name.endswith("_uncontrolled") else _THRESHOLD, _L2)
        for name in OPTIMIZERS
        if name.startswith("paper_nlcg")
    },
}


def search_space(optimizer: str) -> SearchSpace:
    """The space of an optimiser.

    Raises:
      ValueError: if there is none.
    """
    return look_up("optimizer", optimizer, SEARCH_SPACES)


def with_values(config: RunConfig, values: Mapping[str, float]) -> RunConfig:
    """A configuration with the values of dimensions, by their names.

    Where decoupled decay is among them, the loss has no L2 term.
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
