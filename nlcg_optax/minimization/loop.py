"""The loop of `minimize`: outer iteration and line search as one state machine.

Each turn of the loop measures one point and hands it to the line search; where the
search ends the same turn takes the step, asks for the next direction and sets out on
the next search. So there is one loop with one gradient in it, and ``vmap`` over
problems keeps every problem busy at its own pace.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree
from nlcg_optax.linesearch import trial_step, wolfe_search
from nlcg_optax.linesearch.trial_step import ErrorEstimate
from nlcg_optax.linesearch.wolfe_search import SearchState
from nlcg_optax.minimization.methods import Method
from nlcg_optax.minimization.result import Status
from nlcg_optax.minimization.state import (
    Evaluated,
    Iterations,
    Limits,
    MinimizeState,
    Objective,
    Progress,
    Sizes,
    is_converged,
)
from nlcg_optax.trees.inner_products import products_and_maxima

UNBOUNDED = -1e30
MAX_FAILED_SEARCHES = 4  # in a row
STALLED_MEMORY = 8  # iterations without progress, doubled, at which memory is given up
MAX_STEP_GROWTH = 10.0  # of the trial step by the ratio of successive slopes


class _Measured(NamedTuple):
    """The fields of `MinimizeState` that a measurement changes, but for counters."""

    search: SearchState
    candidate: Evaluated
    candidate_step: jax.Array
    candidate_slope: jax.Array
    sizes: jax.Array


def run(
    objective: Objective,
    method: Method,
    limits: Limits,
    state: MinimizeState,
    callback: Callable[[Progress], None] | None = None,
) -> MinimizeState:
    """Measures and steps until something in ``limits`` or the status ends it.

    Args:
      objective: x -> (f(x), aux).
      method: direction and line search.
      limits: when to end.
      state: from `minimize_state`, new or that of an earlier run.
      callback: called on the host after each iteration.

    Returns:
      The last state; its ``status`` says why it is the last.
    """

    def turn(state: MinimizeState) -> MinimizeState:
        state = _measure(objective, method, limits, state)
        return _if(
            ~wolfe_search.is_running(state.search),
            lambda s: _iterate(method, limits, s, callback),
            state,
        )

    def goes_on(state: MinimizeState) -> jax.Array:
        within = state.work < limits.max_evaluations
        return (state.status == Status.RUNNING) & within

    def body(carry: tuple[jax.Array, MinimizeState]) -> tuple[jax.Array, MinimizeState]:
        state = turn(carry[1])
        return goes_on(state), state

    # A boolean decides: an integer XLA would take for a counter and, compiling, look
    # for the number of turns.
    start = goes_on(state), state
    end = jax.lax.while_loop(lambda carry: carry[0], body, start)[1]
    spent = end.status == Status.RUNNING
    return end._replace(
        status=jnp.where(spent, Status.MAX_EVALUATIONS, end.status).astype(jnp.int32)
    )


def _measure(
    objective: Objective, method: Method, limits: Limits, state: MinimizeState
) -> MinimizeState:
    """Measures the point that the search asks for and tells the search."""
    needs_gradient = wolfe_search.needs_gradient(state.search)

    def with_gradient() -> _Measured:
        return _measure_gradient(objective, method, limits, state)

    def value_alone() -> _Measured:
        value = objective(_point(state, state.search.step))[0].astype(
            state.previous_step.dtype
        )
        return _Measured(
            wolfe_search.advance_probe(method.rules, state.search, value),
            *(getattr(state, field) for field in _Measured._fields[1:]),
        )

    # The search is told inside the branches: what they hand on is computed once, and
    # not by every loop over parameters that reads it.
    measured = jax.lax.cond(needs_gradient, with_gradient, value_alone)
    return state._replace(
        **measured._asdict(),
        evaluations=state.evaluations
        + jnp.stack([~needs_gradient, needs_gradient]).astype(jnp.int32),
    )


def _measure_gradient(
    objective: Objective, method: Method, limits: Limits, state: MinimizeState
) -> _Measured:
    """Measures value and gradient."""
    search = state.search
    is_first = state.num_measured == 0
    (value, aux), grad = jax.value_and_grad(objective, has_aux=True)(
        _point(state, search.step)
    )
    value = value.astype(state.previous_step.dtype)
    (u_g,), (grad_max,) = products_and_maxima(
        [(state.updates, grad)], [grad], dtype=value.dtype
    )
    usable = jnp.isfinite(value) & jnp.isfinite(grad_max)
    # A gradient with an infinite entry must not pass for one with a good slope.
    slope = jnp.where(usable, -u_g, jnp.nan)
    known = Sizes(*state.sizes)
    sizes = jnp.stack(
        Sizes(
            jnp.where(is_first, value, known.start_value),
            jnp.where(is_first, grad_max, known.start_grad_max),
            jnp.maximum(known.largest_grad_max, jnp.where(usable, grad_max, 0)),
        )
    )

    # Converged wherever the search happens to be, but never uphill.
    level = value <= search.start_value + search.tolerance
    converged = usable & level & is_converged(limits, sizes, value, grad_max)
    accepted = wolfe_search.accepts(method.rules, search, value, slope)
    accepted |= converged | is_first
    lower = usable & (value < state.candidate.value)
    advanced = wolfe_search.advance_point(method.rules, search, value, slope)

    def taken() -> tuple[Evaluated, jax.Array, jax.Array]:
        point = Evaluated(value, grad, grad_max, aux)
        return _cast_like(point, state.candidate), search.step, slope

    candidate, candidate_step, candidate_slope = jax.lax.cond(
        lower | (usable & accepted) | is_first,
        taken,
        lambda: (state.candidate, state.candidate_step, state.candidate_slope),
    )
    return _Measured(
        search=advanced._replace(
            stage=jnp.where(accepted, wolfe_search.ACCEPTED, advanced.stage)
        ),
        candidate=candidate,
        candidate_step=candidate_step,
        candidate_slope=candidate_slope,
        sizes=sizes,
    )


def _iterate(
    method: Method,
    limits: Limits,
    state: MinimizeState,
    callback: Callable[[Progress], None] | None,
) -> MinimizeState:
    """Takes the step of a search that has ended and sets out on the next one."""
    acc = state.previous_step.dtype
    is_first = state.num_measured == 1
    nit, num_stalled, num_failed = Iterations(*state.iterations)
    accepted = state.search.stage == wolfe_search.ACCEPTED
    moved = accepted | (state.candidate.value < state.search.start_value)
    # Where nothing was taken that is still the start.
    evaluated, params = state.candidate, _point(state, state.candidate_step)
    converged = is_converged(limits, state.sizes, evaluated.value, evaluated.grad_max)
    error = trial_step.after_search(ErrorEstimate(*state.error), accepted)
    error = trial_step.observe(error, evaluated.value)

    improved = converged | is_first | (evaluated.value < state.best.value)
    best, best_params = _select(
        improved, (evaluated, params), (state.best, state.best_params)
    )
    smaller = evaluated.grad_max < 0.5 * state.smallest_grad_max
    rounding = 10 * jnp.finfo(acc).eps * jnp.abs(state.best.value)
    lower = evaluated.value < state.best.value - rounding
    num_stalled = jnp.where(lower | smaller | is_first, 0, num_stalled + 1)

    # A failed search without any lower point: forget everything, go downhill. Likewise
    # where nothing has got smaller for 8, 16, 32, ... iterations: what is remembered
    # is rounding.
    restart = jax.lax.population_count(num_stalled) == 1
    restart &= num_stalled >= STALLED_MEMORY
    restart |= ~moved
    direction_state = _forgotten_if(restart, method, state.direction_state, params)
    updates, direction_state = method.direction.update(
        evaluated.grad,
        direction_state,
        params,
        value=evaluated.value,
        grad=evaluated.grad,
    )
    (u_g, g_g), (params_max, updates_max) = products_and_maxima(
        [(updates, evaluated.grad), (evaluated.grad,) * 2],
        [params, updates],
        dtype=acc,
    )
    descends = (u_g > 0) & jnp.isfinite(u_g)
    updates = _select(descends, updates, evaluated.grad)
    slope = -jnp.where(descends, u_g, g_g)

    step = jnp.where(moved & ~is_first, state.candidate_step, state.previous_step)
    # After failed searches in a row set out with ever shorter steps.
    num_failed = jnp.where(moved, 0, num_failed + 1)
    fresh = trial_step.first_step(
        evaluated.value,
        slope,
        params_max,
        jnp.where(descends, updates_max, evaluated.grad_max),
    ) * jnp.power(jnp.asarray(0.1, acc), num_failed.astype(acc))
    probe = jnp.ones([], jnp.bool_)
    if method.initial_step == "one":
        later = jnp.ones([], acc)
        probe = restart | is_first | ~descends
        probe |= ~trial_step.unit_step_fits(
            state.candidate_step, state.search.start_slope, state.candidate_slope
        )
    else:
        ratio = state.search.start_slope / slope
        later = step * jnp.minimum(ratio, MAX_STEP_GROWTH)
    later = jnp.where((later > 0) & jnp.isfinite(later), later, fresh)
    search = wolfe_search.start(
        evaluated.value,
        slope,
        jnp.where((step == 0) | restart, fresh, later),
        # Counted from the best point, so that no number of steps leads uphill by more.
        jnp.maximum(
            best.value + trial_step.tolerance(error, best.value) - evaluated.value, 0
        ),
        probe=probe,
    )

    is_finite = jnp.isfinite(evaluated.value) & jnp.isfinite(evaluated.grad_max)
    nit += (moved & ~is_first).astype(jnp.int32)
    status = state.status
    for condition, code in (
        (nit >= limits.max_iterations, Status.MAX_ITERATIONS),
        (num_stalled >= limits.patience, Status.STAGNATION),
        (num_failed >= MAX_FAILED_SEARCHES, Status.NO_PROGRESS),
        (~(slope < 0), Status.NO_PROGRESS),
        (evaluated.value < UNBOUNDED, Status.UNBOUNDED_BELOW),
        (converged, Status.CONVERGED),
        (is_first & ~is_finite, Status.NON_FINITE_START),
    ):
        status = jnp.where(condition, code, status)
    if callback is not None:
        progress = Progress(
            nit, evaluated.value, evaluated.grad_max, step, *state.evaluations
        )
        jax.debug.callback(callback, progress, ordered=False)
    return state._replace(
        current=params,
        candidate=evaluated,
        candidate_step=jnp.zeros([], acc),
        candidate_slope=slope,
        best=best,
        best_params=best_params,
        updates=updates,
        direction_state=direction_state,
        search=search,
        error=jnp.stack(error),
        previous_step=step,
        smallest_grad_max=jnp.minimum(state.smallest_grad_max, evaluated.grad_max),
        iterations=jnp.stack(Iterations(nit, num_stalled, num_failed)),
        status=status.astype(jnp.int32),
    )


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
    return _if(
        condition,
        lambda old: _cast_like(method.direction.init(params), old),
        state,
    )


def _if(condition: jax.Array, fn: Callable[[Any], Any], state: Any) -> Any:
    """``fn(state)`` where the condition holds, else the state.

    A loop of one turn or none: XLA lets a loop write over its state, while a
    conditional copies what its branches hand on, here all of the memory.
    """

    def body(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        return jnp.zeros([], jnp.bool_), fn(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], body, (condition, state))[1]


def _point(state: MinimizeState, step: jax.Array) -> PyTree:
    """Where a step leads: x + t d."""
    return optax.apply_updates(
        state.current, jax.tree.map(lambda u: -step.astype(u.dtype) * u, state.updates)
    )


def _cast_like(tree: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, other)


def _select(condition: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    # A conditional copies; a selection would be a loop to compile for every leaf.
    return jax.lax.cond(condition, lambda: _cast_like(x, y), lambda: y)
