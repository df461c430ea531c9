"""The decision on beta: rule, bounds, average, restarts and guards, on scalars only."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.direction.options import Options
from nlcg_optax.direction.products import Measured
from nlcg_optax.direction.rules import InnerProducts
from nlcg_optax.direction.state import ScaleByNlcgState

POWELL_ORTHOGONALITY = 0.2  # Powell, 1977: restart if |g_prevᵀP g| >= .2 gᵀP g


class Decision(NamedTuple):
    """What to do in a step; in the scope "per_leaf" fields have one entry per leaf.

    Attributes:
      finite: whether the step is taken; a scalar in every scope.
      ascends: whether ``P = I`` replaces a preconditioner with ``gᵀP g <= 0``.
      restarted: whether β is zero because of a test or a guard.
      beta: the β of ``d = -z + β d_prev``.
      beta_average: the exponential average of β.
      g_g: ``gᵀg``.
      g_z: ``gᵀz`` as the rule reads it, without ``noise``.
      slope: ``dᵀg`` of the new direction.
      noise: by how much ``gᵀz`` is too large.
      d_d: ``dᵀd`` of the new direction.
      d_pinv_d: ``dᵀP⁻¹d`` of the new direction.
    """

    finite: jax.Array
    ascends: jax.Array
    restarted: jax.Array
    beta: jax.Array
    beta_average: jax.Array
    g_g: jax.Array
    g_z: jax.Array
    slope: jax.Array
    noise: jax.Array | float
    d_d: jax.Array
    d_pinv_d: jax.Array


def decide(
    options: Options,
    measured: Measured,
    state: ScaleByNlcgState,
    must_restart: bool | jax.Array = False,
) -> Decision:
    """Decides on β from the products of a step.

    Args:
      options: options of the direction.
      measured: the products of this step.
      state: state of the direction before the step; only its scalars are read.
      must_restart: another reason to restart.

    Returns:
      The decision.
    """
    finite = jnp.all(
        jnp.isfinite(measured.g_g)
        & jnp.isfinite(measured.g_z)
        & jnp.isfinite(measured.z_z)
    )
    ascends, m = _without_bad_preconditioner(options, measured)
    finite &= jnp.all(jnp.isfinite(m.noise))
    products = _rule_products(m, state)
    in_scope = jax.vmap(options.rule) if options.scope == "per_leaf" else options.rule
    beta = jnp.asarray(in_scope(products)).astype(m.g_g.dtype)

    # If the rule gives no valid β, average in zero, not beta_min. If a test restarts,
    # average in the β of the rule.
    restarted = (state.count == 0) | ascends | ~jnp.isfinite(beta)
    smoothing = jnp.asarray(options.beta_smoothing).astype(beta.dtype)
    beta = jnp.where(restarted, 0, _clipped(beta, options.beta_min, options.beta_max))
    beta_average = smoothing * state.beta_average + (1 - smoothing) * beta
    restarted |= _restart_tests(options, products, state.count) | must_restart

    # Guards, evaluated at the tentative direction.
    slope, d_d = _slope_and_norm(beta_average, m, state)
    restarted |= ~(jnp.isfinite(d_d) & jnp.isfinite(_norm_in_p(beta_average, m, state)))
    if options.restart is not None:
        margin = m.rounding * jnp.sqrt(m.g_g) * jnp.sqrt(d_d)
        restarted |= ~(slope < -margin)
    beta = jnp.where(restarted, 0, beta_average)
    slope, d_d = _slope_and_norm(beta, m, state)
    # Rounding must not break Cauchy-Schwarz: (dᵀg)² <= dᵀd gᵀg, and likewise in P.
    d_d = jnp.maximum(d_d, slope * safe_divide(slope, m.g_g))
    d_pinv_d = _norm_in_p(beta, m, state)
    d_pinv_d = jnp.maximum(d_pinv_d, slope * safe_divide(slope, m.g_z))
    return Decision(
        finite=finite,
        ascends=ascends,
        restarted=restarted,
        beta=beta,
        beta_average=beta_average,
        g_g=m.g_g,
        g_z=products.g_z,
        slope=slope,
        noise=m.noise,
        d_d=d_d,
        d_pinv_d=d_pinv_d,
    )


def _norm_in_p(beta: jax.Array, m: Measured, state: ScaleByNlcgState) -> jax.Array:
    """``dᵀP⁻¹d`` of the next direction."""
    d_pinv_d = m.g_z + beta * (beta * state.d_pinv_d - 2 * m.d_g)
    return jnp.where(beta == 0, m.g_z, d_pinv_d)  # what has overflowed ends here


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Computes a quotient, zero unless the denominator is positive.

    Examples:
      >>> safe_divide(jnp.float32(3.), jnp.float32(0.))
      Array(0., dtype=float32)
    """
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)


def _clipped(
    beta: jax.Array, low: float | jax.Array, high: float | jax.Array
) -> jax.Array:
    """β clipped to its bounds; a bound known to be infinite makes no array."""
    if isinstance(low, jax.Array) or low != -math.inf:
        beta = jnp.maximum(beta, jnp.asarray(low).astype(beta.dtype))
    if isinstance(high, jax.Array) or high != math.inf:
        beta = jnp.minimum(beta, jnp.asarray(high).astype(beta.dtype))
    return beta


def _without_bad_preconditioner(
    options: Options, m: Measured
) -> tuple[jax.Array, Measured]:
    """Whether ``gᵀP g <= 0``, and the products, with ``P = I`` in that case."""
    if not (options.preconditioned and options.ensure_positive):
        return jnp.zeros_like(m.g_z, dtype=bool), m
    ascends = ~(m.g_z > 0)
    return ascends, m._replace(
        g_z=jnp.where(ascends, m.g_g, m.g_z),
        z_z=jnp.where(ascends, m.g_g, m.z_z),
        d_z=jnp.where(ascends, m.d_g, m.d_z),
        noise=jnp.where(ascends, 0, m.noise),
    )


def _rule_products(m: Measured, state: ScaleByNlcgState) -> InnerProducts:
    return InnerProducts(
        g_z=m.g_z - m.noise,
        y_z=m.y_z - m.noise,
        d_g=m.d_g,
        d_y=m.d_y,
        d_g_prev=state.d_g_prev,
        g_prev_z_prev=state.g_prev_z_prev,
        g_z_prev=m.g_z_prev,
        y_p_y=jnp.maximum(m.y_p_y, 0),
        d_pinv_d=state.d_pinv_d,
    )


def _restart_tests(options: Options, products: InnerProducts, count: jax.Array) -> Any:
    restart: Any = False
    if options.restart == "powell":
        g_prev_z = products.g_z - products.y_z
        restart = jnp.abs(g_prev_z) >= POWELL_ORTHOGONALITY * products.g_z
    if options.restart_period is not None:
        restart |= count % jnp.asarray(options.restart_period, jnp.int32) == 0
    return restart


def _slope_and_norm(
    beta: jax.Array, m: Measured, state: ScaleByNlcgState
) -> tuple[jax.Array, jax.Array]:
    """``dᵀg`` and ``dᵀd`` of ``-z + beta d_prev``."""
    return (
        -m.g_z + beta * m.d_g,
        m.z_z + beta * (beta * state.d_d - 2 * m.d_z),
    )
