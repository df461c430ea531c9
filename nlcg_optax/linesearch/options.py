"""The arguments of the line search, checked."""

import math
from typing import Any, NamedTuple

import jax

from nlcg_optax import validation
from nlcg_optax.linesearch.wolfe_search import WolfeRules

INITIAL_STEPS = ("previous", "one")
# Open intervals. Those of the last two begin at the least factors of `wolfe_search`.
RANGES = (
    ("shrinkage", 0, 1),
    ("expansion", 1, math.inf),
    ("contraction", 0, 1),
    ("non_finite_contraction", 0, 1),
    ("max_extrapolation", 1.1, math.inf),
    ("max_quadratic_step", 0.01, math.inf),
)


class Options(NamedTuple):
    """Arguments of `scale_by_hager_zhang_linesearch`.

    Attributes:
      rules: conditions and budget of a search.
      initial_step: kind of the trial step.
      quadratic_step: whether a search starts with the minimizer of a parabola.
    """

    rules: WolfeRules
    initial_step: str
    quadratic_step: bool | str


def checked_options(
    *,
    sufficient_decrease: float | jax.Array,
    max_slope_ratio: float | jax.Array,
    initial_step: str,
    quadratic_step: bool | str,
    max_evaluations: int,
) -> Options:
    """Returns the `Options` with these values; raises where one is out of its range."""
    validation.check_choice("initial_step", initial_step, INITIAL_STEPS)
    _check_quadratic_step(quadratic_step, initial_step)
    rules = WolfeRules(
        sufficient_decrease=sufficient_decrease,
        max_slope_ratio=max_slope_ratio,
        max_evaluations=max_evaluations,
    )
    check_rules(rules, has_probe=quadratic_step is not False)
    return Options(rules, initial_step, quadratic_step)


def check_rules(rules: WolfeRules, *, has_probe: bool = True) -> None:
    """Raises ValueError if a parameter of a search is out of its range.

    Args:
      rules: the parameters; arrays are let through.
      has_probe: whether a search may begin with a value alone. Such a point cannot be
        accepted, so that one more is needed.

    Examples:
      >>> check_rules(WolfeRules(shrinkage=2.0))
      Traceback (most recent call last):
      ValueError: shrinkage=2.0 is not in (0, 1)
    """
    _check_conditions(rules.sufficient_decrease, rules.max_slope_ratio)
    for name, low, high in RANGES:
        value = getattr(rules, name)
        if isinstance(value, jax.Array):
            continue
        validation.check_number(name, value)
        if not low < value < high:
            raise ValueError(f"{name}={value!r} is not in ({low:g}, {high:g})")
    most = rules.max_evaluations
    validation.check_positive_int("max_evaluations", most)
    if has_probe and not isinstance(most, jax.Array) and most < 2:
        raise ValueError(
            f"max_evaluations={most!r} leaves no point to accept after the quadratic "
            "step, which measures a value alone; allowed are at least 2"
        )


def _check_conditions(sufficient_decrease: Any, max_slope_ratio: Any) -> None:
    """Raises unless 0 < δ < 1/2 and δ <= σ < 1; lets arrays through."""
    for name, value in (
        ("sufficient_decrease", sufficient_decrease),
        ("max_slope_ratio", max_slope_ratio),
    ):
        if not isinstance(value, jax.Array):
            validation.check_number(name, value)
    is_known = not isinstance(sufficient_decrease, jax.Array)
    if is_known and not 0 < sufficient_decrease < 0.5:
        raise ValueError(
            f"sufficient_decrease={sufficient_decrease!r} is not in (0, 1/2)"
        )
    if isinstance(max_slope_ratio, jax.Array):
        return
    least = sufficient_decrease if is_known else 0.0
    if not least <= max_slope_ratio < 1:
        raise ValueError(
            f"max_slope_ratio={max_slope_ratio!r} is not in [sufficient_decrease, 1) = "
            f"[{sufficient_decrease!r}, 1)"
        )


def _check_quadratic_step(quadratic_step: Any, initial_step: str) -> None:
    """Raises ValueError unless it is a boolean, or adaptive from the unit step."""
    if quadratic_step != "adaptive" and not isinstance(quadratic_step, bool):
        raise ValueError(
            f"quadratic_step={quadratic_step!r} must be True, False or 'adaptive'"
        )
    if quadratic_step == "adaptive" and initial_step != "one":
        raise ValueError(
            "quadratic_step='adaptive' compares with the step one and needs "
            f"initial_step='one'; got {initial_step!r}"
        )
