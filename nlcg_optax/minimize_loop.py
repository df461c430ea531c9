"""The loop of `minimize`: outer iteration and line search as one state machine.

Each turn of the loop measures one point and hands it to the line search; where the
search ends the same turn takes the step, asks for the next direction and sets out on
the next search. So there is one loop with one gradient in it, and ``vmap`` over
problems keeps every problem busy at its own pace.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree
from nlcg_optax.inner_products import max_abs, vdots
from nlcg_optax.methods import Method
from nlcg_optax.minimize_result import Status
from nlcg_optax.minimize_state import (
    Evaluated,
    Limits,
    MinimizeState,
    Objective,
    Progress,
    is_converged,
)
from nlcg_optax.step_size import trial_step, wolfe_search

UNBOUNDED = -1e30
MAX_FAILED_SEARCHES = 4  # in a row
STALLED_MEMORY = 10  # iterations without progress after which memory is given up
MAX_STEP_GROWTH = 10.0  # of the trial step by the ratio of successive slopes


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
        state = _if(
            ~wolfe_search.is_running(state.search),
            lambda s: _iterate(method, limits, s, callback),
            state,
        )
        spent = state.ngev + state.nfev / 3 >= limits.max_evaluations
        running = state.status == Status.RUNNING
        return state._replace(
            status=jnp.where(
                running & spent, Status.MAX_EVALUATIONS, state.status
            ).astype(jnp.int32)
        )

    return jax.lax.while_loop(lambda s: s.status == Status.RUNNING, turn, state)


def _measure(
    objective: Objective, method: Method, limits: Limits, state: MinimizeState
) -> MinimizeState:
    """Measures the point that the search asks for and tells the search."""
    search, step = state.search, state.search.step
    acc = state.previous_step.dtype
    is_first = state.ngev + state.nfev == 0
    needs_gradient = wolfe_search.needs_gradient(search)
    x = _move(state.current.params, step, state.direction)

    def value_and_grad(x_: PyTree) -> tuple[jax.Array, PyTree, PyTree]:
        (value, aux), grad = jax.value_and_grad(objective, has_aux=True)(x_)
        return value.astype(acc), grad, aux

    def value_alone(x_: PyTree) -> tuple[jax.Array, PyTree, PyTree]:
        value, aux = objective(x_)
        return value.astype(acc), jax.tree.map(jnp.zeros_like, x_), aux

    value, grad, aux = jax.lax.cond(needs_gradient, value_and_grad, value_alone, x)
    slope = vdots([(state.direction, grad)], dtype=acc)[0]
    grad_max = max_abs(grad)
    point = Evaluated(x, value, grad, grad_max, aux)
    usable = needs_gradient & jnp.isfinite(value) & jnp.isfinite(grad_max)
    # A gradient with an infinite entry must not pass for one with a good slope.
    slope = jnp.where(usable, slope, jnp.nan)
    largest = jnp.maximum(state.largest_grad_max, grad_max)
    state = state._replace(
        start_value=jnp.where(is_first, value, state.start_value),
        start_grad_max=jnp.where(is_first, grad_max, state.start_grad_max),
        largest_grad_max=jnp.where(usable, largest, state.largest_grad_max),
        nfev=state.nfev + (~needs_gradient).astype(jnp.int32),
        ngev=state.ngev + needs_gradient.astype(jnp.int32),
    )

    # Converged wherever the search happens to be, but never uphill.
    level = value <= search.start_value + search.tolerance
    converged = usable & level & is_converged(limits, state, point)
    search = wolfe_search.advance(method.rules, search, value, slope)
    accepted = (search.stage == wolfe_search.ACCEPTED) | converged | is_first
    lower = usable & (value < state.candidate.value)
    taken = lower | (usable & accepted) | is_first
    return state._replace(
        search=search._replace(
            stage=jnp.where(accepted, wolfe_search.ACCEPTED, search.stage)
        ),
        candidate=_select(taken, point, state.candidate),
        candidate_step=jnp.where(taken, step, state.candidate_step),
        candidate_slope=jnp.where(taken, slope, state.candidate_slope),
    )


def _iterate(
    method: Method,
    limits: Limits,
    state: MinimizeState,
    callback: Callable[[Progress], None] | None,
) -> MinimizeState:
    """Takes the step of a search that has ended and sets out on the next one."""
    acc = state.previous_step.dtype
    is_first = state.ngev + state.nfev == 1
    accepted = state.search.stage == wolfe_search.ACCEPTED
    moved = accepted | (state.candidate.value < state.current.value)
    current = state.candidate  # where nothing was taken that is still the start
    converged = is_converged(limits, state, current)
    error = trial_step.after_search(state.error, accepted)
    error = trial_step.observe(error, current.value)

    improved = converged | is_first | (current.value < state.best.value)
    best = _select(improved, current, state.best)
    smaller = current.grad_max < 0.5 * state.smallest_grad_max
    rounding = 10 * jnp.finfo(acc).eps * jnp.abs(state.best.value)
    lower = current.value < state.best.value - rounding
    num_stalled = jnp.where(lower | smaller | is_first, 0, state.num_stalled + 1)

    # A failed search without any lower point: forget everything, go downhill. Likewise
    # where nothing has got smaller for some time: what is remembered is rounding.
    restart = ~moved | ((num_stalled > 0) & (num_stalled % STALLED_MEMORY == 0))
    # A conditional, not a selection: the memory must not be rewritten every time.
    direction_state = _if(
        restart,
        lambda old: jax.tree.map(
            lambda o, n: n.astype(o.dtype), old, method.direction.init(current.params)
        ),
        state.direction_state,
    )
    updates, direction_state = method.direction.update(
        current.grad,
        direction_state,
        current.params,
        value=current.value,
        grad=current.grad,
    )
    direction = jax.tree.map(jnp.negative, updates)
    slope = vdots([(direction, current.grad)], dtype=acc)[0]
    descends = (slope < 0) & jnp.isfinite(slope)
    steepest = jax.tree.map(jnp.negative, current.grad)
    direction = _select(descends, direction, steepest)
    slope = jnp.where(
        descends, slope, -vdots([(current.grad, current.grad)], dtype=acc)[0]
    )

    step = jnp.where(moved & ~is_first, state.candidate_step, state.previous_step)
    # After failed searches in a row set out with ever shorter steps.
    num_failed = jnp.where(moved, 0, state.num_failed + 1)
    fresh = trial_step.first_step(
        current.value, slope, max_abs(current.params), max_abs(direction)
    ) * jnp.power(jnp.asarray(0.1, acc), num_failed)
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
        current.value,
        slope,
        jnp.where((step == 0) | restart, fresh, later),
        # Counted from the best point, so that no number of steps leads uphill by more.
        jnp.maximum(
            best.value + trial_step.tolerance(error, best.value) - current.value, 0
        ),
        probe=probe,
    )

    is_finite = jnp.isfinite(current.value) & jnp.isfinite(current.grad_max)
    nit = state.nit + (moved & ~is_first).astype(jnp.int32)
    status = state.status
    for condition, code in (
        (nit >= limits.max_iterations, Status.MAX_ITERATIONS),
        (num_stalled >= limits.patience, Status.STAGNATION),
        (num_failed >= MAX_FAILED_SEARCHES, Status.NO_PROGRESS),
        (~(slope < 0), Status.NO_PROGRESS),
        (current.value < UNBOUNDED, Status.UNBOUNDED_BELOW),
        (converged, Status.CONVERGED),
        (is_first & ~is_finite, Status.NON_FINITE_START),
    ):
        status = jnp.where(condition, code, status)
    if callback is not None:
        progress = Progress(
            nit, current.value, current.grad_max, step, state.nfev, state.ngev
        )
        jax.debug.callback(callback, progress, ordered=False)
    return state._replace(
        current=current,
        candidate=current,
        candidate_step=jnp.zeros([], acc),
        candidate_slope=slope,
        best=best,
        direction=direction,
        direction_state=direction_state,
        search=search,
        error=error,
        previous_step=step,
        smallest_grad_max=jnp.minimum(state.smallest_grad_max, current.grad_max),
        num_stalled=num_stalled,
        num_failed=num_failed,
        status=status.astype(jnp.int32),
        nit=nit,
    )


def _if(condition: jax.Array, fn: Callable[[Any], Any], state: Any) -> Any:
    """``fn(state)`` where the condition holds, else the state.

    A loop of one turn or none: XLA lets a loop write over its state, while a
    conditional copies what its branches hand on, here all of the memory.
    """

    def body(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        return jnp.zeros([], jnp.bool_), fn(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], body, (condition, state))[1]


def _move(params: PyTree, step: jax.Array, direction: PyTree) -> PyTree:
    return optax.apply_updates(
        params, jax.tree.map(lambda d: step.astype(d.dtype) * d, direction)
    )


def _select(condition: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b).astype(b.dtype), x, y)
