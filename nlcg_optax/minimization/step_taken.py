"""The step that a line search of `minimize` has led to, and how good it is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree, times
from nlcg_optax.linesearch import wolfe_search
from nlcg_optax.minimization.convergence import Limits, Sizes, has_small_gradient
from nlcg_optax.minimization.state import (
    Evaluated,
    Iterations,
    MinimizeState,
    is_first_measurement,
    is_neighbor,
)
from nlcg_optax.xla.control_flow import cond

LEVEL = 10.0  # units of rounding by which the objective must fall to be lower


class Taken(NamedTuple):
    """Where the search that has ended leads.

    Attributes:
      evaluated: what is known at the new point.
      params: the new point.
      is_first: whether the point is where the run begins.
      accepted: whether the search ended with its conditions satisfied.
      moved: whether the point differs from the one before.
      best: the best point so far.
      best_params: where it lies.
      sizes: the `Sizes`, brought up to date except for the promise of the next step.
      num_stalled: iterations without progress.
    """

    evaluated: Evaluated
    params: PyTree
    is_first: jax.Array
    accepted: jax.Array
    moved: jax.Array
    best: Evaluated
    best_params: PyTree
    sizes: Sizes
    num_stalled: jax.Array


def point_at(current: PyTree, updates: PyTree, step: jax.Array) -> PyTree:
    """Computes x + t d, where ``updates`` are -d."""
    return optax.apply_updates(
        current, jax.tree.map(lambda u: times(-step, u).astype(u.dtype), updates)
    )


def take_step(limits: Limits, state: MinimizeState) -> Taken:
    """The point that the search leads to, and how it compares with those before."""
    acc = state.previous_step.dtype
    is_first = is_first_measurement(state)
    accepted = state.search.stage == wolfe_search.ACCEPTED
    # If no point was taken, the candidate is still the start.
    evaluated = state.candidate
    params = point_at(state.current, state.updates, state.candidate_step)
    known = Sizes(*state.sizes)
    converged = has_small_gradient(
        limits, state.sizes, evaluated.value, evaluated.grad_max
    )
    rounding = LEVEL * jnp.finfo(acc).eps
    # Values equal to within rounding are compared by their gradients.
    ceiling = state.best.value + rounding * jnp.abs(state.best.value)
    as_low = evaluated.value <= jnp.minimum(ceiling, known.start_value)
    flatter = as_low & (evaluated.grad_max < 0.5 * state.best.grad_max)
    converged &= evaluated.value <= known.start_value
    improved = converged | (evaluated.value < state.best.value) | flatter
    # Where a run begins, though not where it goes on with another scale.
    begins = is_first & (Iterations(*state.iterations).nit == 0)
    improved |= begins | (is_first & jnp.isposinf(state.best.value))
    # A neighbor stays apart from the best point: the next search compares their
    # gradients.
    improved &= converged | ~is_neighbor(state)
    old = state.best, state.best_params
    best, best_params = cond(
        improved, lambda: optax.tree.cast_like((evaluated, params), old), lambda: old
    )
    lower = evaluated.value < known.level - rounding * jnp.abs(known.level)
    smaller = evaluated.grad_max < 0.5 * known.smallest_grad_max
    num_stalled = Iterations(*state.iterations).num_stalled
    return Taken(
        evaluated=evaluated,
        params=params,
        is_first=is_first,
        accepted=accepted,
        moved=accepted | (evaluated.value < state.search.start_value),
        best=best,
        best_params=best_params,
        sizes=known._replace(
            level=jnp.where(lower | is_first, evaluated.value, known.level),
            smallest_grad_max=jnp.where(
                smaller | is_first, evaluated.grad_max, known.smallest_grad_max
            ),
        ),
        num_stalled=jnp.where(lower | smaller | is_first, 0, num_stalled + 1),
    )
