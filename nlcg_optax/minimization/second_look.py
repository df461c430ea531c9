"""A second look before `minimize` ends: searches in units of the parameters.

If parameters have very different sizes, the steepest descent, and all that is learned
from it, moves only the smallest of them. In low precision its rounding then keeps the
gradient large, while the others would have to move with it along a valley. A direction
that moves every parameter in proportion to itself leads along the valley if there is
one.

If it does not, the gradient points at a wall: the rounding of x alone makes it this
large and hides its component along the valley. The change of the gradient over a step
of a few roundings of x is the normal of the wall. Without its component along the
normal, the gradient leads along the valley, in any units.
"""

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import difference, times
from nlcg_optax.linesearch import trial_step, wolfe_search
from nlcg_optax.minimization.convergence import (
    NOISE,
    NOISE_OF_PARAMS,
    Limits,
    Sizes,
    may_hide_descent,
)
from nlcg_optax.minimization.result import Status
from nlcg_optax.minimization.state import NEIGHBOR, Iterations, MinimizeState
from nlcg_optax.minimization.step_taken import Taken
from nlcg_optax.trees.inner_products import products_and_maxima, vdots

# The searches: along the steepest descent; from the best point to a neighbor, a few
# roundings of x away; from the best point along the steepest descent without its part
# along the normal.
LOOKS = 3


def found_descent(state: MinimizeState, taken: Taken) -> jax.Array:
    """Whether a search led below the best point so far, by more than rounding."""
    best = state.best.value
    rounding = NOISE * float(jnp.finfo(best.dtype).eps) * jnp.abs(best)
    return taken.evaluated.value < best - rounding


def second_look(limits: Limits, state: MinimizeState, look: jax.Array) -> MinimizeState:
    r"""Puts off the end of a run for a search along :math:`d_i = -x_i r_i`.

    With :math:`r_i = x_i g_i` that is the steepest descent in the logarithms of the
    parameters. The third search has :math:`r - z\, z^\top r / z^\top z` instead, where
    :math:`z_i = x_i (g'_i - g_i)` and :math:`g'` is the gradient at the neighbor.

    Args:
      limits: the tolerance.
      state: a state whose run would end, with a finite gradient.
      look: the number of the search, 1 to `LOOKS`.

    Returns:
      The state of that search, in which the final status is put off; the unchanged
      state if the gradient is too small to hide a descent.
    """
    scale, is_first = state.scale, look == 1

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(is_first, new, old)

    point = jax.tree.map(chosen, state.candidate, state.best)
    params = jax.tree.map(chosen, state.current, state.best_params)
    relative = jax.tree.map(jnp.multiply, params, point.grad)
    change = difference(state.candidate.grad, point.grad)
    normal = jax.tree.map(jnp.multiply, params, optax.tree.cast_like(change, params))
    n_r, n_n = vdots([(normal, relative), (normal, normal)], dtype=scale.dtype)
    projects = (look == LOOKS) & (n_n > 0)
    part = jnp.where(projects, n_r / jnp.where(projects, n_n, 1), 0)
    relative = difference(relative, jax.tree.map(lambda n: times(part, n), normal))
    relative = optax.tree.cast_like(relative, params)
    (square,), (largest,) = products_and_maxima(
        [(relative, relative)], [relative], dtype=scale.dtype
    )
    looks = may_hide_descent(limits, state.sizes, point.value, square)
    looks &= jnp.isfinite(square) & (square > 0) & jnp.isfinite(part)
    looks &= (look != LOOKS) | projects
    slope = -jnp.where(looks, square, 1)
    # The first trial changes the parameter that moves most by its own size.
    value = point.value
    step = trial_step.first_step(value, slope, jnp.ones_like(value), largest)
    few_roundings = NOISE_OF_PARAMS * float(jnp.finfo(value.dtype).eps)
    near = few_roundings / jnp.where(looks, largest, 1)
    step = jnp.where(look == NEIGHBOR, near, step)
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
    search = wolfe_search.start(value, slope, step, tolerance, probe=look != NEIGHBOR)
    new = state._replace(
        current=params,
        candidate=point,
        current_grad_max=point.grad_max,
        updates=jax.tree.map(jnp.multiply, params, relative),
        candidate_slope=slope,
        search=search,
        sizes=jnp.stack(sizes),
        iterations=jnp.stack(iterations),
        status=jnp.full_like(state.status, int(Status.RUNNING)),
    )
    return jax.tree.map(
        lambda new, old: old if new is old else jnp.where(looks, new, old), new, state
    )
