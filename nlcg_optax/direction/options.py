"""The checked arguments of a direction, and the options derived from them."""

from typing import Any, NamedTuple

import jax
import optax

from nlcg_optax import validation
from nlcg_optax.direction.products import Needs, needs_of
from nlcg_optax.direction.rules import (
    ConjugacyRule,
    bounds_of,
    get_rule,
    products_used,
)
from nlcg_optax.trees.inner_products import Scope

RESTARTS = ("ascent", "powell", None)


class Options(NamedTuple):
    """Arguments of `scale_by_nlcg`, with bounds and rule resolved.

    Attributes:
      rule: the conjugacy rule as a function.
      preconditioner: the preconditioner, the identity if none was given.
      preconditioned: whether one was given.
      beta_min: lower bound of β.
      beta_max: upper bound of β.
      beta_smoothing: decay of the average of β.
      restart: ``"ascent"``, ``"powell"`` or None.
      restart_period: steps between restarts, or None.
      scope: scope of the inner products.
      state_dtype: dtype in which trees are stored, or None.
      ensure_positive: whether to replace a preconditioner by the identity where
        ``gᵀP g <= 0``.
      needs: what to measure and store.
    """

    rule: ConjugacyRule
    preconditioner: optax.GradientTransformationExtraArgs
    preconditioned: bool
    beta_min: float | jax.Array
    beta_max: float | jax.Array
    beta_smoothing: float | jax.Array
    restart: str | None
    restart_period: int | jax.Array | None
    scope: Scope
    state_dtype: Any
    ensure_positive: bool
    needs: Needs


def checked_options(
    rule: str | float | jax.Array | ConjugacyRule = "pr+",
    *,
    preconditioner: optax.GradientTransformation | None = None,
    beta_min: float | jax.Array | None = None,
    beta_max: float | jax.Array | None = None,
    beta_smoothing: float | jax.Array = 0.0,
    restart: str | None = "ascent",
    restart_period: int | jax.Array | None = None,
    scope: Scope = "global",
    state_dtype: Any = None,
    ensure_positive: bool = True,
) -> Options:
    """Checks the arguments of `scale_by_nlcg`.

    Args:
      rule: see `scale_by_nlcg`, as for all others but the last.
      preconditioner: transformation that maps g to P g.
      beta_min: lower bound of β.
      beta_max: upper bound of β.
      beta_smoothing: decay of the average of β.
      restart: a test for restarts.
      restart_period: steps between restarts.
      scope: scope of the inner products.
      state_dtype: dtype in which trees are stored.
      ensure_positive: see `Options`.

    Returns:
      The options.

    Raises:
      ValueError: if an argument is out of its range.
      TypeError: if the rule or the preconditioner has a wrong type.
    """
    conjugacy_rule = get_rule(rule)
    reads = products_used(conjugacy_rule)
    if preconditioner is not None:
        validation.check_transformation("preconditioner", preconditioner)
    lowest, highest = bounds_of(rule)
    beta_min = lowest if beta_min is None else beta_min
    beta_max = highest if beta_max is None else beta_max
    validation.check_range("beta_min", "beta_max", beta_min, beta_max)
    validation.check_decay("beta_smoothing", beta_smoothing)
    validation.check_choice("restart", restart, RESTARTS)
    validation.check_scope(scope)
    if restart_period is not None:
        validation.check_positive_int("restart_period", restart_period)
    if state_dtype is not None:
        validation.check_float_dtype("state_dtype", state_dtype)
    preconditioned = preconditioner is not None
    return Options(
        rule=conjugacy_rule,
        preconditioner=optax.with_extra_args_support(
            preconditioner or optax.identity()
        ),
        preconditioned=preconditioned,
        beta_min=beta_min,
        beta_max=beta_max,
        beta_smoothing=beta_smoothing,
        restart=restart,
        restart_period=restart_period,
        scope=scope,
        state_dtype=state_dtype,
        ensure_positive=ensure_positive,
        needs=needs_of(
            reads, preconditioned=preconditioned, powell=restart == "powell"
        ),
    )
