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

from nlcg_optax.dtypes import PyTree, accumulator_dtype
from nlcg_optax.inner_products import max_abs, vdots
from nlcg_optax.methods import Method
from nlcg_optax.minimize_result import Status
from nlcg_optax.step_size import trial_step, wolfe_search
from nlcg_optax.step_size.trial_step import ErrorEstimate
from nlcg_optax.step_size.wolfe_search import SearchState

UNBOUNDED = -1e30
MAX_FAILED_SEARCHES = 4  # in a row
MAX_STEP_GROWTH = 10.0  # of the trial step by the ratio of successive slopes


class Limits(NamedTuple):
    """When to end; scalars.

    Attributes:
      tol: the tolerance.
      value_weight: weight of |f| in the scale of the tolerance.
      constant_weight: weight of one in it.
      start_weight: weight of the largest entry of the first gradient in it.
      max_iterations: of iterations.
      max_evaluations: of gradients plus a third of the values.
      patience: of iterations without a smaller objective or gradient.
    """

    tol: Any
    value_weight: Any
    constant_weight: Any
    start_weight: Any
    max_iterations: Any
    max_evaluations: Any
    patience: Any


class Progress(NamedTuple):
    """What the callback of `minimize` is told after each iteration.

    Attributes:
      nit: iterations so far.
      fun: the objective.
      grad_max: largest absolute entry of the gradient.
      step_size: the step just taken.
      nfev: values measured so far without a gradient.
      ngev: values measured so far with one.
    """

    nit: jax.Array
    fun: jax.Array
    grad_max: jax.Array
    step_size: jax.Array
    nfev: jax.Array
    ngev: jax.Array


class Evaluated(NamedTuple):
    """A point and what is known there.

    Attributes:
      params: the point.
      value: the objective.
      grad: its gradient.
      grad_max: largest absolute entry of the gradient.
      aux: auxiliary output of the objective, or None.
    """

    params: PyTree
    value: jax.Array
    grad: PyTree
    grad_max: jax.Array
    aux: PyTree


class MinimizeState(NamedTuple):
    """State of `minimize` between two measurements.

    Attributes:
      current: where the line search set out.
      candidate: the best point that this search has measured.
      candidate_step: its step.
      best: the best point of all.
      direction: d.
      direction_state: state of the direction's transformation.
      search: the running line search.
      error: estimate of the error of the objective.
      previous_step: the last step taken.
      start_grad_max: largest absolute entry of the first gradient.
      smallest_grad_max: the same of the smallest gradient so far.
      num_stalled: iterations since objective or gradient last got smaller.
      num_failed: failed searches in a row.
      status: a `Status`.
      nit: iterations.
      nfev: values without a gradient.
      ngev: values with one.
    """

    current: Evaluated
    candidate: Evaluated
    candidate_step: jax.Array
    best: Evaluated
    direction: PyTree
    direction_state: PyTree
    search: SearchState
    error: ErrorEstimate
    previous_step: jax.Array
    start_grad_max: jax.Array
    smallest_grad_max: jax.Array
    num_stalled: jax.Array
    num_failed: jax.Array
    status: jax.Array
    nit: jax.Array
    nfev: jax.Array
    ngev: jax.Array


Objective = Callable[[PyTree], tuple[jax.Array, PyTree]]


def initial_state(objective: Objective, method: Method, x0: PyTree) -> MinimizeState:
    """The state before the first measurement, which is that of ``x0`` itself.

    Args:
      objective: x -> (f(x), aux).
      method: direction and line search.
      x0: a tree of real floating-point arrays.

    Returns:
      A state whose first turn measures ``x0``.
    """
    acc = accumulator_dtype(x0)
    aux = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(objective, x0)[1]
    )
    infinite = jnp.full([], jnp.inf, acc)
    zero, count = jnp.zeros([], acc), jnp.zeros([], jnp.int32)
    zeros = jax.tree.map(jnp.zeros_like, x0)
    nothing = Evaluated(x0, infinite, zeros, infinite, aux)
    return MinimizeState(
        current=nothing,
        candidate=nothing,
        candidate_step=zero,
        best=nothing,
        direction=zeros,
        direction_state=method.direction.init(x0),
        # A step of zero along no direction: the first turn measures x0.
        search=wolfe_search.start(infinite, zero, zero, zero, probe=False),
        error=trial_step.no_error_estimate(acc),
        previous_step=zero,
        start_grad_max=infinite,
        smallest_grad_max=infinite,
        num_stalled=count,
        num_failed=count,
        status=jnp.full([], Status.RUNNING, jnp.int32),
        nit=count,
        nfev=count,
        ngev=count,
    )


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
      state: from `initial_state`, or that of an earlier run.
      callback: called on the host after each iteration.

    Returns:
      The last state; its ``status`` says why it is the last.
    """

    def turn(state: MinimizeState) -> MinimizeState:
        state = _measure(objective, method, limits, state)
        ended = (state.search.stage >= wolfe_search.ACCEPTED) & (
            state.status == Status.RUNNING
        )
        state = jax.lax.cond(
            ended, lambda s: _iterate(method, limits, s, callback), lambda s: s, state
        )
        spent = state.ngev + state.nfev / 3 >= limits.max_evaluations
        running = state.status == Status.RUNNING
        return state._replace(
            status=jnp.where(
                running & spent, Status.MAX_EVALUATIONS, state.status
            ).astype(jnp.int32)
        )

    return jax.lax.while_loop(lambda s: s.status == Status.RUNNING, turn, state)


def resume(limits: Limits, state: MinimizeState) -> MinimizeState:
    """Lets a run that a limit has ended go on under new limits.

    Args:
      limits: the new limits.
      state: the state of an earlier run.

    Returns:
      The state, running again if a limit had ended it or if the new tolerance is
      tighter than what was reached.
    """
    limited = (state.status == Status.MAX_ITERATIONS) | (
        state.status == Status.MAX_EVALUATIONS
    )
    within = state.ngev + state.nfev / 3 < limits.max_evaluations
    within &= state.nit < limits.max_iterations
    loose = (state.status == Status.CONVERGED) & ~_is_converged(
        limits, state, state.current
    )
    # A converged run ended in the middle of a search: begin the next from there.
    search = state.search._replace(
        stage=jnp.where(loose, wolfe_search.FAILED, state.search.stage)
    )
    return state._replace(
        status=jnp.where(
            (limited & within) | loose, Status.RUNNING, state.status
        ).astype(jnp.int32),
        search=search,
    )


def _is_converged(limits: Limits, state: MinimizeState, point: Evaluated) -> jax.Array:
    scale = (
        limits.constant_weight
        + limits.value_weight * jnp.abs(point.value)
        + limits.start_weight * state.start_grad_max
    )
    return point.grad_max <= limits.tol * scale


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

    search = wolfe_search.advance(method.rules, search, value, slope)
    search = search._replace(
        stage=jnp.where(is_first, wolfe_search.ACCEPTED, search.stage)
    )
    lower = usable & (value < state.candidate.value)
    taken = lower | (usable & (search.stage == wolfe_search.ACCEPTED))
    state = state._replace(
        search=search,
        candidate=_select(taken, point, state.candidate),
        candidate_step=jnp.where(taken, step, state.candidate_step),
        start_grad_max=jnp.where(is_first, grad_max, state.start_grad_max),
        nfev=state.nfev + (~needs_gradient).astype(jnp.int32),
        ngev=state.ngev + needs_gradient.astype(jnp.int32),
    )
    # Converged wherever the search happens to be, but never uphill.
    level = value <= search.start_value + search.tolerance
    converged = usable & level & _is_converged(limits, state, point)
    status = jnp.where(converged, Status.CONVERGED, state.status)
    status = jnp.where(is_first & ~usable, Status.NON_FINITE_START, status)
    return state._replace(
        current=_select(converged, point, state.current),
        best=_select(converged | is_first, point, state.best),
        nit=state.nit + (converged & ~is_first).astype(jnp.int32),
        status=status.astype(jnp.int32),
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
    current = _select(moved, state.candidate, state.current)
    error = trial_step.after_search(state.error, accepted)
    error = trial_step.observe(error, current.value)

    improved = current.value < state.best.value
    best = _select(improved, current, state.best)
    smaller = current.grad_max < 0.5 * state.smallest_grad_max
    rounding = 10 * jnp.finfo(acc).eps * jnp.abs(state.best.value)
    lower = current.value < state.best.value - rounding
    num_stalled = jnp.where(lower | smaller | is_first, 0, state.num_stalled + 1)

    # A failed search without any lower point: forget everything, go downhill.
    restart = ~moved
    # A conditional, not a selection: the memory must not be rewritten every time.
    direction_state = jax.lax.cond(
        restart,
        lambda: method.direction.init(current.params),
        lambda: state.direction_state,
    )
    updates, direction_state = method.direction.update(
        current.grad,
        direction_state,
        current.params,
        value=current.value,
        grad=current.grad,
    )
    direction = jax.tree.map(jnp.negative, updates)
    slope, length = vdots(
        [(direction, current.grad), (direction, direction)], dtype=acc
    )
    descends = (slope < 0) & jnp.isfinite(slope) & jnp.isfinite(length)
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
    if method.initial_step == "one":
        later = jnp.ones([], acc)
    else:
        ratio = state.search.start_slope / slope
        later = step * jnp.minimum(ratio, MAX_STEP_GROWTH)
    later = jnp.where((later > 0) & jnp.isfinite(later), later, fresh)
    search = wolfe_search.start(
        current.value,
        slope,
        jnp.where(is_first | restart, fresh, later),
        # Counted from the best point, so that no number of steps leads uphill by more.
        jnp.maximum(
            best.value + trial_step.tolerance(error, best.value) - current.value, 0
        ),
    )

    nit = state.nit + (moved & ~is_first).astype(jnp.int32)
    status = state.status
    for condition, code in (
        (nit >= limits.max_iterations, Status.MAX_ITERATIONS),
        (num_stalled >= limits.patience, Status.STAGNATION),
        (num_failed >= MAX_FAILED_SEARCHES, Status.NO_PROGRESS),
        (~(slope < 0), Status.NO_PROGRESS),
        (current.value < UNBOUNDED, Status.UNBOUNDED_BELOW),
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


def _move(params: PyTree, step: jax.Array, direction: PyTree) -> PyTree:
    return optax.apply_updates(
        params, jax.tree.map(lambda d: step.astype(d.dtype) * d, direction)
    )


def _select(condition: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b).astype(b.dtype), x, y)
