"""The best step in a plane, and the damping that a step calls for: scalars only."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.curvature.along import DirectionalCurvature
from nlcg_optax.step_size.reduction_ratio import ReductionRatio

# Levenberg-Marquardt, as Martens (2010) adapts it.
GOOD_RATIO, BAD_RATIO = 0.75, 0.25
SHRINK, GROW = 2 / 3, 3 / 2
MIN_DAMPING, MAX_DAMPING = 1e-6, 1e6
# Squared sine, in the metric of the curvature, below which directions are parallel.
MIN_SQUARED_SINE = 1e-5


class Plane(NamedTuple):
    """The best step a u + b s in the plane of u and s.

    Attributes:
      step_size: a.
      momentum: b.
      predicted: reduction of the loss by the undamped model.
      moves: whether there is a step at all.
      fell_back: whether a fallback replaced the best step in the plane.
      zero: whether u has neither slope nor curvature.
    """

    step_size: jax.Array
    momentum: jax.Array
    predicted: jax.Array
    moves: jax.Array
    fell_back: jax.Array
    zero: jax.Array


def best_in_plane(
    found: DirectionalCurvature, damping: jax.Array, last_step_size: jax.Array
) -> Plane:
    r"""Solves the damped system of two equations, with the fallbacks.

    .. math:: (M + \lambda\, \mathrm{diag} M) \binom{a}{b}
        = \binom{g^\top u}{g^\top s}

    The fallbacks are those of `scale_by_subspace_step`.

    Args:
      found: slopes along u and s, and M, their curvature.
      damping: λ.
      last_step_size: a of the previous step.

    Returns:
      The step.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = DirectionalCurvature(
      ...     jnp.float32(1.), jnp.array([2., 3.]), jnp.diag(jnp.array([1., 2.])))
      >>> plane = best_in_plane(found, jnp.float32(0.), jnp.float32(0.))
      >>> plane.step_size.round(4), plane.momentum.round(4)
      (Array(2., dtype=float32), Array(1.5, dtype=float32))
    """
    slope_u, slope_s = found.slopes
    (uu, us), (_, ss) = found.matrix
    finite = jnp.isfinite(found.value) & jnp.all(jnp.isfinite(found.slopes))
    finite &= jnp.all(jnp.isfinite(found.matrix))
    zero = (slope_u == 0) & (uu == 0)

    # In units in which both curvatures are one.
    root_u, root_s = (jnp.sqrt(jnp.where(x > 0, x, 1)) for x in (uu, ss))
    cosine = us / root_u / root_s
    in_plane = (uu > 0) & (ss > 0) & (1 - cosine * cosine > MIN_SQUARED_SINE)
    diagonal = 1 + damping
    determinant = jnp.where(in_plane, diagonal * diagonal - cosine * cosine, 1)
    p_u, p_s = slope_u / root_u, slope_s / root_s
    a = (diagonal * p_u - cosine * p_s) / determinant / root_u
    b = (diagonal * p_s - cosine * p_u) / determinant / root_s

    alone = slope_u / jnp.where(uu == 0, 1, uu) / diagonal
    alone = jnp.where(
        uu > 0,
        alone,
        jnp.where(
            last_step_size != 0, last_step_size, jnp.where(uu == 0, 0, jnp.abs(alone))
        ),
    )
    a, b = jnp.where(in_plane, a, alone), jnp.where(in_plane, b, 0)
    predicted = a * slope_u + b * slope_s
    predicted -= (a * (a * uu + b * us) + b * (a * us + b * ss)) / 2
    moves = finite & ~zero & jnp.isfinite(predicted) & jnp.isfinite(a) & jnp.isfinite(b)
    no_previous = (slope_s == 0) & (ss == 0)
    fine = (in_plane | ((uu > 0) & no_previous)) & moves
    return Plane(
        step_size=jnp.where(moves, a, 0),
        momentum=jnp.where(moves, b, 0),
        predicted=predicted,
        moves=moves,
        fell_back=~fine & ~(zero & finite),
        zero=zero & finite,
    )


def adapted(damping: jax.Array, achieved: ReductionRatio) -> jax.Array:
    """The damping after a step: Levenberg-Marquardt.

    Args:
      damping: the damping of the step.
      achieved: achieved over predicted reduction of the loss.

    Returns:
      The new damping: larger after a bad step, smaller after a good one.

    Examples:
      >>> import jax.numpy as jnp
      >>> adapted(jnp.float32(2.), ReductionRatio(jnp.float32(0.), jnp.array(True)))
      Array(3., dtype=float32)
    """
    low, high = (jnp.asarray(x, damping.dtype) for x in (MIN_DAMPING, MAX_DAMPING))
    # The floor lets a damping grow again from zero; shrinking leaves zero at zero.
    grown = jnp.clip(damping * GROW, low, high)
    shrunk = jnp.maximum(damping * SHRINK, jnp.minimum(damping, low))
    bad, good = achieved.ratio < BAD_RATIO, achieved.ratio > GOOD_RATIO
    return jnp.where(bad, grown, jnp.where(good, shrunk, damping))
