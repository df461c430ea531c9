"""Initial step sizes, and the rounding-error estimate of the objective, for a search.

Source of the numbers: [HZ06] W. W. Hager, H. Zhang, "Algorithm 851: CG_DESCENT", ACM
Trans. Math. Softw. 32, 2006.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

DECAY = 0.7  # Δ of [HZ06, equation (2.6)]
RELATIVE_ERROR = 1e-6  # ε of [HZ06, section 3]: ε_k is this times an average of |f|
# Cap of ε_k, relative to the present |f|. [HZ06] has none: if |f| has fallen far below
# its average, ε_k would exceed all that is left to gain.
MAX_RELATIVE_ERROR = 1e-5
MAX_GROWTH = 1e4  # of ε_k after failed searches
# ψ0 of [HZ06, step I0], which has 0.01. A longer first trial costs nothing: the
# parabola through its value corrects it, and it is bounded by the other part.
FRACTION = 1.0
FITTING = 3.0  # factor from one, either way, within which the unit step fits


class ErrorEstimate(NamedTuple):
    """Running estimate of the size of the objective, for the tolerance ε_k.

    Attributes:
      weight: Q_k.
      average: C_k, an average of past |f|.
      growth: factor of ε_k, above one after failed searches.
    """

    weight: jax.Array
    average: jax.Array
    growth: jax.Array


def no_error_estimate(dtype: Any) -> ErrorEstimate:
    """The estimate before the first value.

    Examples:
      >>> import jax.numpy as jnp
      >>> no_error_estimate(jnp.float32).growth
      Array(1., dtype=float32)
    """
    return ErrorEstimate(
        jnp.zeros([], dtype), jnp.zeros([], dtype), jnp.ones([], dtype)
    )


def observe(estimate: ErrorEstimate, value: jax.Array) -> ErrorEstimate:
    r"""Takes one value of the objective into the running estimate.

    .. math:: Q \leftarrow 1 + \Delta Q, \qquad C \leftarrow C + (|f| - C) / Q,

    with :math:`\Delta` = `DECAY`; [HZ06, equation (2.6)]. A value that is not finite
    says nothing about the size of the objective, and is left out.

    Args:
      estimate: the estimate so far.
      value: f, a scalar of the dtype of the estimate.

    Returns:
      The new estimate.

    Examples:
      >>> import jax.numpy as jnp
      >>> observe(no_error_estimate(jnp.float32), jnp.float32(-3.)).average
      Array(3., dtype=float32)
    """
    weight = 1 + DECAY * estimate.weight
    average = estimate.average + (jnp.abs(value) - estimate.average) / weight
    usable = jnp.isfinite(value)
    return estimate._replace(
        weight=jnp.where(usable, weight, estimate.weight),
        average=jnp.where(usable, average, estimate.average),
    )


def tolerance(estimate: ErrorEstimate, value: jax.Array) -> jax.Array:
    r"""The ε_k by which an approximate Wolfe point may lie above f_k.

    .. math:: \epsilon_k = g \min(\epsilon\, C_k,\; \epsilon_{max} |f_k|)

    with ε = `RELATIVE_ERROR`, ε_max = `MAX_RELATIVE_ERROR`, each at least ten units of
    rounding of the dtype, and the bounded growth g after failed searches. Without the
    bound the search would accept steps uphill and walk away from the minimum.

    Args:
      estimate: from `observe`.
      value: f_k.

    Returns:
      A scalar of the dtype of the value.

    Examples:
      >>> import jax.numpy as jnp
      >>> estimate = observe(no_error_estimate(jnp.float32), jnp.float32(100.))
      >>> bool(jnp.isclose(tolerance(estimate, jnp.float32(100.)), 1.2e-4, rtol=1e-2))
      True
      >>> bool(jnp.isclose(tolerance(estimate, jnp.float32(1.)), 1e-5, rtol=1e-2))
      True
    """
    unit = 10 * jnp.finfo(estimate.average.dtype).eps
    error = jnp.maximum(RELATIVE_ERROR, unit) * estimate.average
    cap = jnp.maximum(MAX_RELATIVE_ERROR, unit) * jnp.abs(value)
    return (estimate.growth * jnp.minimum(error, cap)).astype(value.dtype)


def after_search(estimate: ErrorEstimate, accepted: jax.Array) -> ErrorEstimate:
    """Lets ε_k grow tenfold after a failed search, `MAX_GROWTH`-fold at most.

    It does not shrink again: the rounding error of an objective that once hid the
    decrease will hide it again.

    Examples:
      >>> import jax.numpy as jnp
      >>> after_search(no_error_estimate(jnp.float32), jnp.array(False)).growth
      Array(10., dtype=float32)
    """
    growth = jnp.where(accepted, estimate.growth, 10 * estimate.growth)
    growth = jnp.minimum(growth, MAX_GROWTH).astype(growth.dtype)
    return estimate._replace(growth=growth)


def first_step(
    value: jax.Array,
    slope: jax.Array,
    params_max: jax.Array,
    direction_max: jax.Array,
) -> jax.Array:
    r"""A first step along a direction without a natural length.

    .. math:: \min\left\{\psi_0 \frac{\|x\|_\infty}{\|d\|_\infty},\;
        \frac{2 |f|}{|f'|}\right\},

    without the part that is zero; 1 if both are. The first part moves the largest
    parameter by ψ0 = `FRACTION` of itself [HZ06, step I0]. The second is the minimizer
    of a parabola whose minimum is zero (R. Fletcher, "Practical Methods of
    Optimization", 1987, equation (2.6.8), with the decrease |f|): a sum of squares has
    nothing beyond it to gain, except a plateau.

    Args:
      value: f.
      slope: the slope along the direction, negative.
      params_max: largest absolute parameter.
      direction_max: largest absolute entry of the direction.

    Returns:
      A positive and finite step.

    Examples:
      >>> import jax.numpy as jnp
      >>> first_step(*map(jnp.float32, (8., -4., 0., 2.)))
      Array(4., dtype=float32)
      >>> first_step(*map(jnp.float32, (8., -4., 6., 2.)))
      Array(3., dtype=float32)
    """

    def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
        usable = denominator > 0  # zero by zero would alarm `jax.debug_nans`
        out = numerator / jnp.where(usable, denominator, 1)
        return jnp.where(usable & (out > 0), out, jnp.inf)

    by_params = ratio(
        FRACTION * params_max.astype(value.dtype), direction_max.astype(value.dtype)
    )
    step = jnp.minimum(by_params, ratio(2 * jnp.abs(value), jnp.abs(slope)))
    return jnp.where(jnp.isfinite(step), step, 1).astype(value.dtype)


def unit_step_fits(
    step: jax.Array, start_slope: jax.Array, end_slope: jax.Array
) -> jax.Array:
    r"""Whether the search that just ended had its minimizer near the unit step.

    The minimizer by the secant is near if it is within a factor of three, `FITTING`:

    .. math:: \frac13 \le \frac{t\, \varphi'(0)}{\varphi'(0) - \varphi'(t)} \le 3.

    A Newton-type direction that fitted will most likely fit again; the value at the
    unit step, for the minimizer of the parabola, is then not worth its cost.

    Args:
      step: t, the step that was taken.
      start_slope: the slope at the start of the search, negative.
      end_slope: the slope at t.

    Returns:
      A boolean scalar; False where a slope is not a number or no step was taken.

    Examples:
      >>> import jax.numpy as jnp
      >>> bool(unit_step_fits(*map(jnp.float32, (1., -4., -1.))))
      True
      >>> bool(unit_step_fits(*map(jnp.float32, (1., -4., -3.9))))
      False
    """
    # With the sign of the difference, which is that of the curvature.
    minimizer, difference = -step * start_slope, end_slope - start_slope
    near = (minimizer * FITTING >= difference) & (minimizer <= FITTING * difference)
    return near & (minimizer > 0)
