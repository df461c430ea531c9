"""The optimisers that are compared: those of the registry, and line searches."""

from collections.abc import Callable, Mapping

import optax

import nlcg_optax
from experiments import optimizers
from experiments.optimizers import Optimizer
from experiments.registry import look_up

MOMENTUM, ADAMW, NLCG = "heavy_ball", "adamw", "nlcg_pr+"
SEARCH_EXTRAS = ("value", "grad", "value_fn")

# Deterministic methods: their line search finds the step size.
SEARCHING: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "lbfgs_search": optax.lbfgs,
    "nlcg_pr+_search": lambda: nlcg_optax.nlcg(None, "pr+"),
}

PEERS = (
    MOMENTUM,
    ADAMW,
    "lars",
    "lbfgs_search",
    "nlcg_fr",
    NLCG,
    "nlcg_pr+_rms",
    "nlcg_pr+_secant",
    "nlcg_pr+_search",
)


def build(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    options: Mapping[str, int | float] | None = None,
) -> Optimizer:
    """`experiments.optimizers.build` for the names of `SEARCHING` as well.

    Raises:
      ValueError: if the name or an option is unknown.
    """
    if name in SEARCHING:
        return Optimizer(SEARCHING[name](), SEARCH_EXTRAS)
    look_up("optimizer", name, {**optimizers.OPTIMIZERS, **SEARCHING})
    return optimizers.build(name, learning_rate, options)
