"""A second look before `minimize` ends: searches in units of the parameters.

If parameters have very different sizes, the steepest descent, and all that is learned
from it, moves only the smallest of them. The others hardly begin to move, although the
gradient, which is small in their units, says that f would descend; or they would have
to move together along a valley, on whose walls rounding keeps the gradient large. A
direction that moves every parameter in proportion to its unit leads along the valley if
there is one. Two kinds of units are known:

1. What a parameter would have to change by for the slope that it had at x0 to explain
   the decrease so far, ``(f_0 - f) / |g_i(x_0)|``. Parameters that have hardly moved
   have this one only.
2. Its own size, ``|x_i|``.

If no search leads down, the gradient points at a wall: the rounding of x alone makes it
this large and hides its component along the valley. The change of the gradient over a
step of a few roundings of x is the normal of the wall. Without its component along the
normal, the gradient leads along the valley, in any units.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree, difference, times
from nlcg_optax.linesearch import trial_step, wolfe_search
from nlcg_optax.minimization.convergence import (
    NOISE,
    NOISE_OF_PARAMS,
    Limits,
    Sizes,
    may_hide_descent,
)
from nlcg_optax.minimization.result import Status
from nlcg_optax.minimization.state import (
    NEIGHBOR,
    SEARCHES_IN_UNITS,
    Iterations,
    MinimizeState,
    is_neighbor,
)
from nlcg_optax.minimization.step_taken import Taken
from nlcg_optax.trees.inner_products import products_and_maxima, vdots

# In each kind of units: along the steepest descent; from the best point to a neighbor,
# a few roundings of x away; from the best point along the steepest descent without its
# part along the normal.
LOOKS = 2 * SEARCHES_IN_UNITS
# What may be left by a first-order bound, in the two kinds of units: units of the
# decrease asked for, and of rounding of f. By slopes the bound was mostly below 10
# roundings at minima of regressions, and above 900 short of them. By sizes f may change
# far less along a plateau than the bound assumes.
LEFT_BY_SLOPE, LEFT_BY_SIZE = (0.1, 100.0), (100.0, 0.1)
MOST_FALL = 100.0  # of f, in units of what a slope promises; concave f may exceed one


class _Steepest(NamedTuple):
    """The steepest ascent in units of the parameters.

    Attributes:
      relative: r, one entry for each parameter.
      square: its squared norm.
      largest: its largest absolute entry.
      may_descend: whether it is large enough to hide a descent.
    """

    relative: PyTree
    square: jax.Array
    largest: jax.Array
    may_descend: jax.Array


def found_descent(state: MinimizeState, taken: Taken) -> jax.Array:
    """Whether a search led below the best point so far, by more than rounding.

    A fall is noise if the slope at the start of the search does not explain it. So is
    any at a neighbor.
    """
    best, search = state.best.value, state.search
    rounding = NOISE * float(jnp.finfo(best.dtype).eps) * jnp.abs(best)
    fall = search.start_value - taken.evaluated.value
    explained = fall <= MOST_FALL * jnp.abs(search.start_slope) * state.candidate_step
    lower = taken.evaluated.value < best - rounding
    return lower & explained & ~is_neighbor(state)


def second_look(limits: Limits, state: MinimizeState, look: jax.Array) -> MinimizeState:
    r"""Puts off the end of a run for a search along :math:`d_i = -u_i r_i`.

    With :math:`r_i = u_i g_i` and the units :math:`u_i` of the parameters, that is the
    steepest descent in ``x / u``; with :math:`u_i = x_i`, in the logarithms of the
    parameters. The third search has :math:`r - z\, z^\top r / z^\top z` instead, where
    :math:`z_i = u_i (g'_i - g_i)` and :math:`g'` is the gradient at the neighbor.

    Args:
      limits: the tolerance.
      state: a state whose run would end, with a finite gradient.
      look: the number of the search, 1 to `LOOKS`.

    Returns:
      The state of that search, in which the final status is put off. If the gradient in
      units of slopes is too small to hide a descent, the state of the first search in
      units of sizes; if it is too small there, too, the unchanged state.
    """
    scale, is_first = state.scale, look == 1

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(is_first, new, old)

    point = jax.tree.map(chosen, state.candidate, state.best)
    params = jax.tree.map(chosen, state.current, state.best_params)
    value = point.value
    change = difference(state.candidate.grad, point.grad)
    steepest = functools.partial(_steepest, limits, state, value, point.grad, change)
    by_size, units = jnp.ones([], jnp.bool_), params
    if state.start_grad is not None:
        by_slope = _units_by_slope(state, value, params)
        by_size = look > SEARCHES_IN_UNITS
        by_size |= ~steepest(by_slope, look, LEFT_BY_SLOPE).may_descend
        units = jax.tree.map(
            lambda size, slope: jnp.where(by_size, size, slope), params, by_slope
        )
    look = jnp.where(by_size, jnp.maximum(look, SEARCHES_IN_UNITS + 1), look)
    is_near = look % SEARCHES_IN_UNITS == NEIGHBOR
    left = jnp.where(by_size, *jnp.asarray([LEFT_BY_SIZE, LEFT_BY_SLOPE], scale.dtype))
    relative, square, largest, looks = steepest(units, look, left)
    slope = -jnp.where(looks, square, 1)
    # The first trial changes the parameter that moves most by its unit.
    step = trial_step.first_step(value, slope, jnp.ones_like(value), largest)
    few_roundings = NOISE_OF_PARAMS * float(jnp.finfo(value.dtype).eps)
    near = few_roundings / jnp.where(looks, largest, 1)
    step = jnp.where(is_near, near, step)
    iterations = Iterations(*state.iterations)._replace(
        num_stalled=jnp.zeros_like(state.status),
        num_failed=jnp.zeros_like(state.status),
        num_small=jnp.zeros_like(state.status),
        put_off=state.status,
        look=look.astype(state.status.dtype),
    )
    unknown = jnp.full_like(value, jnp.inf)
    sizes = Sizes(*state.sizes)._replace(promise=unknown, relative_step=unknown)
    tolerance = state.search.tolerance
    search = wolfe_search.start(value, slope, step, tolerance, probe=~is_near)
    new = state._replace(
        current=params,
        candidate=point,
        current_grad_max=point.grad_max,
        updates=jax.tree.map(jnp.multiply, units, relative),
        candidate_slope=slope,
        search=search,
        sizes=jnp.stack(sizes),
        iterations=jnp.stack(iterations),
        status=jnp.full_like(state.status, int(Status.RUNNING)),
    )
    return jax.tree.map(
        lambda new, old: old if new is old else jnp.where(looks, new, old), new, state
    )


def _units_by_slope(state: MinimizeState, value: jax.Array, params: PyTree) -> PyTree:
    """The first kind of units; the second where the slope at x0 was zero."""
    decrease = Sizes(*state.sizes).start_value - value

    def unit(param: jax.Array, grad: jax.Array) -> jax.Array:
        length = (decrease / jnp.abs(grad).astype(decrease.dtype)).astype(param.dtype)
        return jnp.where(jnp.isfinite(length), length, param)

    return jax.tree.map(unit, params, state.start_grad)


def _steepest(
    limits: Limits,
    state: MinimizeState,
    value: jax.Array,
    grad: PyTree,
    change: PyTree,
    units: PyTree,
    look: jax.Array,
    left: Any,
) -> _Steepest:
    """The gradient in units, in the last search of a kind without its part along z."""
    relative = jax.tree.map(jnp.multiply, units, grad)
    change = optax.tree.cast_like(change, units)
    normal = jax.tree.map(jnp.multiply, units, change)
    n_r, n_n = vdots([(normal, relative), (normal, normal)], dtype=state.scale.dtype)
    is_last = look % SEARCHES_IN_UNITS == 0
    projects = is_last & (n_n > 0)
    part = jnp.where(projects, n_r / jnp.where(projects, n_n, 1), 0)
    relative = difference(relative, jax.tree.map(lambda n: times(part, n), normal))
    relative = optax.tree.cast_like(relative, units)
    (square,), (largest,) = products_and_maxima(
        [(relative, relative)], [relative], dtype=state.scale.dtype
    )
    may_descend = may_hide_descent(limits, state.sizes, value, square, *left)
    may_descend &= jnp.isfinite(square) & (square > 0) & jnp.isfinite(part)
    return _Steepest(relative, square, largest, may_descend & (~is_last | projects))
