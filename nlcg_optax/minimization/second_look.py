"""A second look before `minimize` ends: one search in units of the parameters.

Where parameters are of very different sizes the steepest descent, and what has been
learned from it, moves the smallest of them and nothing else. In a low precision the
rounding of that one then keeps the gradient large, while the others would have to move
together with it along a valley. A direction that moves every parameter in proportion
to itself leads along the valley if there is one.
"""

import jax
import jax.numpy as jnp

from nlcg_optax.linesearch import trial_step, wolfe_search
from nlcg_optax.minimization.convergence import (
    NOISE,
    Limits,
    Sizes,
    may_hide_descent,
)
from nlcg_optax.minimization.result import Status
from nlcg_optax.minimization.state import Iterations, MinimizeState
from nlcg_optax.minimization.step_taken import Taken
from nlcg_optax.trees.inner_products import products_and_maxima


def found_descent(state: MinimizeState, taken: Taken) -> jax.Array:
    """Whether a search led below the best point so far, by more than rounding."""
    best = state.best.value
    rounding = NOISE * float(jnp.finfo(best.dtype).eps) * jnp.abs(best)
    return taken.evaluated.value < best - rounding


def second_look(limits: Limits, state: MinimizeState) -> MinimizeState:
    r"""Puts off the end of a run for a search along :math:`d_i = -x_i^2 g_i`.

    That is the steepest descent in the logarithms of the parameters.

    Args:
      limits: the tolerance.
      state: a state that has converged, with a finite gradient.

    Returns:
      The state of that search, with the status that it would end with put off; the
      state as it was where the gradient is too small to hide a descent.
    """
    value, grad, scale = state.candidate.value, state.candidate.grad, state.scale
    relative = jax.tree.map(jnp.multiply, state.current, grad)
    (square,), (largest,) = products_and_maxima(
        [(relative, relative)], [relative], dtype=scale.dtype
    )
    looks = may_hide_descent(limits, state.sizes, value, square)
    looks &= jnp.isfinite(square) & (square > 0)
    slope = -jnp.where(looks, square, 1)
    # The first trial changes the parameter that moves most by all of itself.
    step = trial_step.first_step(value, slope, jnp.ones_like(value), largest)
    iterations = Iterations(*state.iterations)._replace(
        num_stalled=jnp.zeros_like(state.status),
        num_failed=jnp.zeros_like(state.status),
        num_small=jnp.zeros_like(state.status),
        put_off=state.status + 1,
    )
    unknown = jnp.full_like(value, jnp.inf)
    sizes = Sizes(*state.sizes)._replace(promise=unknown, relative_step=unknown)
    search = wolfe_search.start(value, slope, step, state.search.tolerance)
    new = state._replace(
        updates=jax.tree.map(jnp.multiply, state.current, relative),
        candidate_slope=slope,
        search=search,
        sizes=jnp.stack(sizes),
        iterations=jnp.stack(iterations),
        status=jnp.full_like(state.status, int(Status.RUNNING)),
    )
    return jax.tree.map(
        lambda new, old: old if new is old else jnp.where(looks, new, old), new, state
    )
