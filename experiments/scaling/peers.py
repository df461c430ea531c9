"""The optimizers to compare: those of the registry, and two with line searches."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

import nlcg_optax
from experiments import optimizers
from experiments.optimizers import Choice, Optimizer, choice_of
from experiments.registry import look_up

MOMENTUM, ADAMW, NLCG = "heavy_ball", "adamw", "nlcg"
SEARCH_EXTRAS = ("value", "grad", "value_fn")

# Deterministic methods: their line search finds the step size.
SEARCHING: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "lbfgs_search": optax.lbfgs,
    # With the search of `optax.lbfgs`, so that the two differ in their directions only.
    "nlcg_search": lambda: nlcg_optax.nlcg(
        linesearch=optax.scale_by_zoom_linesearch(
            max_linesearch_steps=30, curv_rtol=0.1, initial_guess_strategy="one"
        )
    ),
}
LABELS = {
    "lbfgs_search": "L-BFGS, line search",
    "nlcg_search": "NLCG PR+, line search",
}
COLORS = {"lbfgs_search": "#c7a17a", "nlcg_search": "#56b4e9"}

PEERS = (
    MOMENTUM,
    ADAMW,
    "lars",
    "lbfgs_search",
    "nlcg,rule=fr",
    NLCG,
    "nlcg,preconditioner=rms",
    "nlcg,preconditioner=secant",
    "nlcg_search",
)


def choice(text: str) -> Choice:
    """The name and options of a text such as ``nlcg,rule=fr``, see `choice_of`.

    Raises:
      ValueError: if the name is unknown, or an option has no value.
    """
    found = choice_of(text)
    if ":" not in found.name:  # a module that registers the name
        look_up("optimizer", found.name, {**optimizers.OPTIMIZERS, **SEARCHING})
    return found


def build(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """`experiments.optimizers.build` for the names of `SEARCHING` as well.

    Raises:
      ValueError: if the name or an option is unknown.
    """
    if name in SEARCHING:
        return Optimizer(SEARCHING[name](), SEARCH_EXTRAS)
    return optimizers.build(name, learning_rate, options)


def color_of(text: str) -> str:
    """The color of a peer in pictures."""
    name = choice(text).name
    return COLORS[name] if name in COLORS else optimizers.color_of(name)


def label_of(text: str) -> str:
    """The label of a peer in tables and pictures."""
    name, options = choice(text)
    return LABELS[name] if name in LABELS else optimizers.label_of(name, options)
