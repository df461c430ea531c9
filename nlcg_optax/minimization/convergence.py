"""When `minimize` may end: the tolerance, and what rounding leaves to be gained.

All quantities are scalars. With the default ``tol_kind="decrease"`` the measure is the
decrease that the next step promises, half of its slope times its length. Its ratio to
the decrease so far stays the same when f or x is scaled or shifted.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

TolKind: TypeAlias = Literal["decrease", "value", "absolute", "relative"]

DEFAULT_TOL = 1e-6
FALLEN = 0.1  # a gradient below this part of the largest one has fallen
# Steps in a row that must promise next to nothing: if the gradient is small relative to
# the largest one, and if not. A promise says little about unexplored directions.
SMALL_STEPS, SMALL_STEPS_OF_LARGE = 3, 8
# Units of rounding of f below which no decrease is asked for. Slopes still measure
# decreases this small, and hundreds of steps in a narrow valley may gain one each.
ROUNDINGS = 0.01
# Iterations without progress after which rounding is considered: with the default kind,
# and with those that limit the gradient, which may stagnate for dozens of iterations
# before it falls again. With 10 in place of 40, one of 183 development problems in
# float64 ends too early (VESUVIOULS).
STALLED, STALLED_GRADIENT = 10, 40
# And at least an eighth of all iterations: a long run gains little per iteration, and
# may gain as much again in as many iterations.
STALLED_PART = 8
SEARCHES = 2  # failed searches in a row after which rounding is considered, too
# A promised decrease is rounding up to this many units of rounding of f, or of its
# terms (f may be the sum of their squares).
NOISE = 30.0
NOISE_OF_TERMS = 300.0
NEARLY_ZERO = 100.0  # f counts as zero up to this many times the decrease asked for
FASTER = 1.2  # the least power of the gradient with which f must vanish
NOISE_OF_PARAMS = 4.0  # a step is rounding up to this many units of rounding of x
LARGEST_BITS = 4  # bits that a parameter must stay below one whose square overflows


class Limits(NamedTuple):
    """When to end: scalars, and a name.

    Attributes:
      tol_kind: what the tolerance is relative to.
      tol: the tolerance.
      max_iterations: limit on iterations.
      max_evaluations: limit on gradients plus a third of the values.
      patience: limit on iterations without a smaller objective or gradient.
    """

    tol_kind: TolKind
    tol: Any
    max_iterations: Any
    max_evaluations: Any
    patience: Any


class Sizes(NamedTuple):
    """How large the objective and its gradient have been.

    Attributes:
      start_value: the objective at x0.
      start_grad_max: largest absolute entry of the gradient there.
      largest_grad_max: the same of the largest gradient so far.
      smallest_grad_max: the same of the smallest gradient so far.
      level: the objective when it last got smaller by more than rounding.
      promise: the decrease last promised by a step of known length, at first infinity.
      relative_step: the largest change that this step makes to a parameter, relative
        to the parameter.
      relative_max: the same for the unit step along the direction.
      scale: factor of the objective and its gradient, here and elsewhere.
    """

    start_value: jax.Array
    start_grad_max: jax.Array
    largest_grad_max: jax.Array
    smallest_grad_max: jax.Array
    level: jax.Array
    promise: jax.Array
    relative_step: jax.Array
    relative_max: jax.Array
    scale: jax.Array

    def times(self, factor: jax.Array) -> "Sizes":
        """The sizes of the objective times a factor; unknown where that overflows."""

        def of(size: jax.Array) -> jax.Array:
            product = factor * size
            return jnp.where(jnp.isfinite(product), product, jnp.inf)

        largest = of(self.largest_grad_max)
        return self._replace(
            start_value=of(self.start_value),
            start_grad_max=of(self.start_grad_max),
            largest_grad_max=jnp.where(jnp.isposinf(largest), 0, largest),
            smallest_grad_max=of(self.smallest_grad_max),
            level=of(self.level),
            promise=of(self.promise),
            scale=factor * self.scale,
        )


def no_sizes(dtype: Any) -> Sizes:
    """The sizes before the first measurement.

    Examples:
      >>> import jax.numpy as jnp
      >>> no_sizes(jnp.float32).promise
      Array(inf, dtype=float32)
    """
    infinite = jnp.full([], jnp.inf, dtype)
    sizes = dict.fromkeys(Sizes._fields, infinite)
    zero, one = jnp.zeros([], dtype), jnp.ones([], dtype)
    return Sizes(**sizes)._replace(largest_grad_max=zero, scale=one)


def has_small_gradient(
    limits: Limits, sizes: jax.Array, value: jax.Array, grad_max: jax.Array
) -> jax.Array:
    """Whether the gradient at a point is as small as the limits ask.

    Args:
      limits: the tolerance and what it is relative to.
      sizes: `Sizes` as a vector.
      value: the objective there.
      grad_max: largest absolute entry of the gradient there.

    Returns:
      A boolean scalar. The kind ``"decrease"`` does not limit the gradient; the result
      then says whether the gradient is zero.
    """
    known = Sizes(*sizes)
    if limits.tol_kind == "decrease":
        return grad_max <= 0
    if limits.tol_kind == "absolute":
        return grad_max <= limits.tol * known.scale
    if limits.tol_kind == "relative":
        return grad_max <= limits.tol * known.start_grad_max

    def is_small(size: jax.Array) -> jax.Array:
        return grad_max <= limits.tol * (known.scale + size)

    # On the way to minus infinity any gradient gets small relative to the value. It
    # must have fallen, too, while f is below -|f(x0)| and before f(x0) itself counts.
    size = jnp.abs(value)
    has_fallen = grad_max <= FALLEN * known.largest_grad_max
    is_start = value >= known.start_value
    believed = jnp.where(is_start, 0, jnp.minimum(size, jnp.abs(known.start_value)))
    return is_small(believed) | (is_small(size) & has_fallen)


def promises_little(limits: Limits, sizes: jax.Array, value: jax.Array) -> jax.Array:
    r"""Whether the next step promises no decrease that the tolerance asks for.

    .. math:: \tfrac12 t |\varphi'(0)| \le \mathrm{tol}^2 \min(|f|, f_0 - f)

    with a hundredth of a unit of rounding in place of :math:`\mathrm{tol}^2` if the
    latter is less. If f falls to zero, as a sum of squares may, this would ask for its
    last digit. For a step that changes no parameter by more than ``tol`` of itself, a
    promise below :math:`\mathrm{tol}^3 (f_0 - f)`, or below the rounding of the terms
    of f, is enough if f itself is not much larger.

    Args:
      limits: the tolerance.
      sizes: `Sizes` as a vector.
      value: f.

    Returns:
      A boolean scalar; False for the other kinds of tolerance.
    """
    if limits.tol_kind != "decrease":
        return jnp.zeros([], jnp.bool_)
    known, eps = Sizes(*sizes), float(jnp.finfo(value.dtype).eps)
    tol = jnp.asarray(limits.tol, value.dtype)
    fraction = jnp.maximum(tol * tol, ROUNDINGS * eps)
    decrease = known.start_value - value
    is_little = known.promise <= fraction * jnp.minimum(decrease, jnp.abs(value))
    short = known.relative_step <= jnp.maximum(tol, NOISE_OF_PARAMS * eps)
    is_zero = _is_nearly_zero(tol, decrease, value)
    least = _least_fraction(tol) * decrease
    return is_little | (short & is_zero & (known.promise <= least))


def _least_fraction(tol: jax.Array) -> jax.Array:
    """The part of the decrease so far that counts as nothing."""
    eps = float(jnp.finfo(tol.dtype).eps)
    return jnp.maximum(tol * tol * tol, NOISE_OF_TERMS * eps * eps)


def _is_nearly_zero(tol: jax.Array, decrease: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.abs(value) <= NEARLY_ZERO * _least_fraction(tol) * decrease


def may_hide_descent(
    limits: Limits,
    sizes: jax.Array,
    value: jax.Array,
    square: jax.Array,
    part: float | jax.Array,
    roundings: float | jax.Array,
) -> jax.Array:
    r"""Whether the gradient is large enough to hide a descent along a flat valley.

    .. math:: \tfrac12 \sum_i (u_i g_i)^2 > \max(k \epsilon, c\, \mathrm{tol}^2)\,
        |f| \min(|f|, f_0 - f)

    In the units :math:`u_i` of the parameters, the left side divided by a curvature is
    the most that a step can gain. Few objectives are so flat that changing a parameter
    by its unit changes them by less than f, or by less than they fell so far. On the
    steep walls of a valley the rounding of x alone can make the gradient as large.

    Args:
      limits: the tolerance.
      sizes: `Sizes` as a vector.
      value: f; if it is nearly zero the answer is no.
      square: the sum on the left.
      part: c, the units of the decrease asked for that may be left.
      roundings: k, the units of rounding of f that may be left.

    Returns:
      A boolean scalar.
    """
    eps = float(jnp.finfo(value.dtype).eps)
    tol = jnp.asarray(limits.tol, value.dtype)
    decrease = Sizes(*sizes).start_value - value
    size = jnp.abs(value)
    asked = tol * tol if limits.tol_kind == "decrease" else jnp.zeros_like(tol)
    curvature = jnp.clip(jnp.abs(decrease), eps * size, size)
    left = jnp.maximum(part * asked, roundings * eps)
    most = 2 * left * size * curvature
    return (square > most) & ~_is_nearly_zero(tol, decrease, value)


def is_too_large(params_max: jax.Array) -> jax.Array:
    """Whether products of parameters this large, or of their steps, over- or underflow.

    Examples:
      >>> import jax.numpy as jnp
      >>> is_too_large(jnp.float32(2e18)), is_too_large(jnp.float32(1e18))
      (Array(True, dtype=bool), Array(False, dtype=bool))
    """
    half = jnp.finfo(params_max.dtype).maxexp // 2
    return params_max > 2.0 ** (half - LARGEST_BITS)


def is_small_fraction(
    limits: Limits, sizes: jax.Array, grad_max: jax.Array
) -> jax.Array:
    """Whether a gradient, relative to the largest one, is within the tolerance."""
    eps = float(jnp.finfo(grad_max.dtype).eps)
    tol = jnp.maximum(
        jnp.asarray(limits.tol, grad_max.dtype), 2 * NOISE_OF_PARAMS * eps
    )
    tol = jnp.minimum(tol, FALLEN)
    return grad_max <= tol * Sizes(*sizes).largest_grad_max


def steps_to_trust(limits: Limits, sizes: jax.Array, grad_max: jax.Array) -> jax.Array:
    """How many steps in a row must promise little before the tolerance is met.

    Args:
      limits: the tolerance.
      sizes: `Sizes` as a vector.
      grad_max: largest absolute entry of the gradient.

    Returns:
      An integer.
    """
    is_small = is_small_fraction(limits, sizes, grad_max)
    return jnp.where(is_small, SMALL_STEPS, SMALL_STEPS_OF_LARGE)


def has_vanished(
    limits: Limits, sizes: jax.Array, value: jax.Array, grad_max: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Whether a minimum of zero is reached, to the tolerance and to rounding.

    With the kind ``"decrease"`` the gradient is below :math:`\mathrm{tol}^3` times the
    largest one, to rounding below :math:`10 \epsilon^2` times it, and f has fallen by a
    larger factor, as at the bottom of a parabola but not on the way down a steep wall.
    If x goes to zero, too, both could halve until they underflow.

    Args:
      limits: the tolerance.
      sizes: `Sizes` as a vector.
      value: f.
      grad_max: largest absolute entry of its gradient.

    Returns:
      Two boolean scalars; the first is False for the other kinds of tolerance.
    """
    known, eps = Sizes(*sizes), float(jnp.finfo(value.dtype).eps)
    fall = grad_max / known.largest_grad_max
    below = jnp.abs(value) <= jnp.abs(known.start_value) * jnp.power(fall, FASTER)
    to_rounding = (fall <= 10 * eps * eps) & below
    if limits.tol_kind != "decrease":
        return jnp.zeros_like(to_rounding), to_rounding
    tol = jnp.asarray(limits.tol, value.dtype)
    return (fall <= jnp.minimum(tol * tol * tol, FALLEN)) & below, to_rounding


def is_rounding(sizes: jax.Array, value: jax.Array, grad_max: jax.Array) -> jax.Array:
    r"""Whether what the last step promised is below rounding.

    A promise is rounding if it is below some units of the rounding of f; or of that of
    its terms, :math:`\epsilon^2 (f_0 - f)`, if f is a sum of squares; or if its step
    does not reach the numbers next to x. The gradient must also have fallen, unless the
    start was nearly as good: a kink, too, leaves steps without length.

    Args:
      sizes: `Sizes` as a vector.
      value: f.
      grad_max: largest absolute entry of its gradient.

    Returns:
      A boolean scalar.
    """
    known, eps = Sizes(*sizes), float(jnp.finfo(value.dtype).eps)
    decrease = known.start_value - value
    rounding = NOISE * eps * jnp.abs(value) + NOISE_OF_TERMS * eps * (eps * decrease)
    too_short = known.relative_step <= NOISE_OF_PARAMS * eps
    within = (known.promise <= rounding) | too_short
    near_start = decrease <= 1e3 * (known.promise + eps * jnp.abs(value))
    has_fallen = grad_max <= FALLEN * known.largest_grad_max
    return within & (has_fallen | near_start)
