"""The next direction of `minimize`, and the line search along it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree, cast_leaf_like
from nlcg_optax.linesearch import trial_step, wolfe_search
from nlcg_optax.linesearch.trial_step import ErrorEstimate
from nlcg_optax.linesearch.wolfe_search import SearchState
from nlcg_optax.minimization.methods import Method
from nlcg_optax.minimization.state import MinimizeState
from nlcg_optax.minimization.step_taken import Taken
from nlcg_optax.trees.inner_products import products_and_maxima
from nlcg_optax.xla.control_flow import apply_if, cond

MAX_STEP_GROWTH = 10.0  # of the trial step by the ratio of successive slopes


class Direction(NamedTuple):
    """The next direction.

    Attributes:
      updates: -d.
      state: state of the direction's transformation.
      slope: the slope along d.
      params_max: largest absolute parameter.
      updates_max: largest absolute entry of d.
      descends: whether d is what the transformation gave, not the negative gradient.
    """

    updates: PyTree
    state: PyTree
    slope: jax.Array
    params_max: jax.Array
    updates_max: jax.Array
    descends: jax.Array


def next_direction(
    method: Method, state: MinimizeState, taken: Taken, restart: jax.Array
) -> Direction:
    """The next direction; the negative gradient where it would not descend."""
    grad, params = taken.evaluated.grad, taken.params
    old = _forgotten_if(restart, method, state.direction_state, params)
    updates, new = method.direction.update(
        grad, old, params, value=taken.evaluated.value, grad=grad
    )
    (u_g, g_g), (params_max, updates_max) = products_and_maxima(
        [(updates, grad), (grad, grad)],
        [params, updates],
        dtype=state.previous_step.dtype,
    )
    descends = (u_g > 0) & jnp.isfinite(u_g)
    return Direction(
        updates=cond(
            descends, lambda: optax.tree.cast_like(updates, grad), lambda: grad
        ),
        state=new,
        slope=-jnp.where(descends, u_g, g_g),
        params_max=params_max,
        updates_max=jnp.where(descends, updates_max, taken.evaluated.grad_max),
        descends=descends,
    )


def next_search(
    method: Method,
    state: MinimizeState,
    taken: Taken,
    direction: Direction,
    error: ErrorEstimate,
    restart: jax.Array,
    num_failed: jax.Array,
) -> tuple[SearchState, jax.Array, jax.Array]:
    """The next search, the step just taken, and whether the next length is known."""
    acc, value = state.previous_step.dtype, taken.evaluated.value
    moved = taken.moved & ~taken.is_first
    step = jnp.where(moved, state.candidate_step, state.previous_step)
    # After each failed search in a row start with a step ten times shorter.
    fresh = trial_step.first_step(
        value, direction.slope, direction.params_max, direction.updates_max
    ) * jnp.power(jnp.asarray(0.1, acc), num_failed.astype(acc))
    probe = jnp.ones([], jnp.bool_)
    if method.initial_step == "one":
        later = jnp.ones([], acc)
        probe = restart | taken.is_first | ~direction.descends
        probe |= ~trial_step.unit_step_fits(
            state.candidate_step, state.search.start_slope, state.candidate_slope
        )
    else:
        ratio = state.search.start_slope / direction.slope
        later = step * jnp.minimum(ratio, MAX_STEP_GROWTH)
    later = jnp.where((later > 0) & jnp.isfinite(later), later, fresh)
    is_fresh = (step == 0) | restart
    # Measured from the best point, so that no number of steps leads further above it.
    best = taken.best.value
    room = best + trial_step.tolerance(error, best) - value
    search = wolfe_search.start(
        value,
        direction.slope,
        jnp.where(is_fresh, fresh, later),
        jnp.maximum(room, 0),
        probe=probe,
    )
    return search, step, ~is_fresh & direction.descends & ~taken.is_first


def _forgotten_if(
    condition: jax.Array, method: Method, state: PyTree, params: PyTree
) -> PyTree:
    """The direction's state or, where the condition holds, that of the start."""
    if method.forget is not None:
        return jax.tree.map(
            lambda new, old: old if new is old else jnp.where(condition, new, old),
            method.forget(state),
            state,
        )
    # No selection: state must not be rewritten every time.
    return apply_if(
        condition,
        lambda _, old: jax.tree.map(cast_leaf_like, method.direction.init(params), old),
        state,
    )
