"""The methods of `minimize` by name: a direction and the line search that suits it."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.direction.rules import RULES, ConjugacyRule
from nlcg_optax.direction.transform import scale_by_nlcg
from nlcg_optax.linesearch.options import check_rules
from nlcg_optax.linesearch.wolfe_search import WolfeRules
from nlcg_optax.preconditioners.limited_memory import (
    forget_pairs,
    scale_by_limited_memory,
)

LIMITED_MEMORY = "limited-memory"
# SciPy's methods, with the nearest one here.
SCIPY_METHODS = {"BFGS": LIMITED_MEMORY, "L-BFGS-B": LIMITED_MEMORY, "CG": "pr+"}
# For Newton-type directions: Nocedal and Wright, "Numerical Optimization", 2006,
# section 3.1. These rules accept the unit step wherever it is of any use.
NEWTON_RULES = WolfeRules(sufficient_decrease=1e-4, max_slope_ratio=0.9)
# Arguments of `scale_by_nlcg` by which a direction may depend on the arrays.
PER_ARRAY = {"scope", "preconditioner"}


class Method(NamedTuple):
    """A direction with its line search.

    Attributes:
      direction: a transformation whose updates are -d, such as `scale_by_nlcg`.
      rules: parameters of the line search.
      initial_step: ``"one"`` if the directions have a natural length, ``"previous"``
        to start from the step before, scaled by the ratio of the slopes. With ``"one"``
        the quadratic step is omitted if the unit step fitted last time.
      may_be_vector: whether the direction does not depend on how the parameters are
        divided into arrays, so that `minimize` may merge small arrays into one vector.
      forget: resets a state of ``direction`` to one that starts anew, changing few of
        its arrays; None for a new state from ``init``.
    """

    direction: optax.GradientTransformationExtraArgs
    rules: WolfeRules = WolfeRules()
    initial_step: Literal["one", "previous"] = "previous"
    may_be_vector: bool = False
    forget: Callable[[Any], Any] | None = None


@functools.cache
def names() -> tuple[str, ...]:
    """The names that `get_method` knows.

    Examples:
      >>> names()[:4]
      ('limited-memory', 'cd', 'dk', 'dy')
    """
    return (LIMITED_MEMORY, *sorted(RULES))


def nlcg_method(
    rule: str | float | jax.Array | ConjugacyRule = "hs+", **kwargs: Any
) -> Method:
    """Two-term NLCG: tight curvature and Powell's restart keep it conjugate.

    Args:
      rule: see `scale_by_nlcg`.
      **kwargs: further arguments of `scale_by_nlcg`.

    Returns:
      A method.

    Raises:
      TypeError: if the rule or another number is traced, as under ``vmap``: the
        compiled program depends on it.

    Examples:
      >>> nlcg_method("pr+").rules.max_slope_ratio
      0.1
    """
    validation.check_static(rule=rule, **kwargs)
    defaults = {"beta_min": -jnp.inf, "beta_max": jnp.inf, "restart": "powell"}
    return Method(
        scale_by_nlcg(rule, **{**defaults, **kwargs}),
        WolfeRules(sufficient_decrease=0.01, max_slope_ratio=0.1),
        may_be_vector=not kwargs.keys() & PER_ARRAY,
    )


def limited_memory_method(
    memory: int = 31,
    rule: str | float | jax.Array | ConjugacyRule | None = None,
    **kwargs: Any,
) -> Method:
    """NLCG in the metric of the last secant pairs.

    Args:
      memory: how many pairs.
      rule: see `scale_by_nlcg`; None for no conjugate term, which is L-BFGS.
      **kwargs: further arguments of `scale_by_nlcg`, if there is a rule.

    Returns:
      A method.

    Raises:
      TypeError: if an argument is traced, as under ``vmap``: the compiled program
        depends on it.

    Examples:
      >>> limited_memory_method(5).initial_step
      'one'
    """
    validation.check_static(memory=memory, rule=rule, **kwargs)
    metric = scale_by_limited_memory(memory)
    if rule is None:
        # Not `scale_by_nlcg` with a β of zero: it protects the state of any
        # preconditioner with a selection, which would rewrite all of the memory.
        return Method(
            metric, NEWTON_RULES, "one", may_be_vector=True, forget=forget_pairs
        )
    defaults = {"beta_min": -jnp.inf, "beta_max": jnp.inf}
    direction = scale_by_nlcg(rule, preconditioner=metric, **{**defaults, **kwargs})
    may_be_vector = not kwargs.keys() & PER_ARRAY
    return Method(direction, NEWTON_RULES, "one", may_be_vector)


@functools.cache
def _by_name(name: str) -> Method:
    # Cached: `minimize` compiles once per method object.
    return limited_memory_method() if name == LIMITED_MEMORY else nlcg_method(name)


@functools.lru_cache(maxsize=64)
def _with_extra_args(
    direction: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    # Cached likewise: Optax wraps a plain transformation in new functions.
    return optax.with_extra_args_support(direction)


def _numbers(rules: WolfeRules) -> WolfeRules:
    """The rules as Python numbers, on which the compiled program depends."""
    validation.check_static(**rules._asdict())
    numbers = WolfeRules(*(x.item() if hasattr(x, "item") else x for x in rules))
    check_rules(numbers)
    return numbers


def get_method(method: str | Method | optax.GradientTransformation) -> Method:
    """Returns the method for a name or a direction, or a given method itself.

    Args:
      method: a name from `names`, a `Method`, or a transformation whose updates are -d.

    Returns:
      The method.

    Raises:
      ValueError: if the name is unknown, or a rule of the line search is out of its
        range.
      TypeError: if it is none of these, or rules of the line search are traced.

    Examples:
      >>> get_method("limited-memory").initial_step
      'one'
    """
    if isinstance(method, Method):
        return method._replace(
            direction=_with_extra_args(method.direction), rules=_numbers(method.rules)
        )
    if isinstance(method, optax.GradientTransformation):
        return Method(_with_extra_args(method))
    if not isinstance(method, str):
        raise TypeError(
            f"method={method!r} is a {type(method).__name__}; allowed are the names "
            f"{list(names())}, a Method and an optax.GradientTransformation"
        )
    if method.upper() in SCIPY_METHODS:  # SciPy ignores case
        ours = SCIPY_METHODS[method.upper()]
        raise ValueError(f"method={method!r} is unknown; use {ours!r}")
    validation.check_choice("method", method, names())
    return _by_name(method)
