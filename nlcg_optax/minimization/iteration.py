"""One iteration of `minimize`, between two line searches.

The step of the search that has ended is taken, the direction's transformation gives the
next direction, the next search begins, and the status says whether there is one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree
from nlcg_optax.linesearch import trial_step, wolfe_search
from nlcg_optax.linesearch.trial_step import ErrorEstimate
from nlcg_optax.linesearch.wolfe_search import SearchState
from nlcg_optax.minimization.convergence import (
    FALLEN,
    SEARCHES,
    STALLED,
    Limits,
    Sizes,
    has_small_gradient,
    has_vanished,
    is_rounding,
    promises_little,
    steps_to_trust,
)
from nlcg_optax.minimization.methods import Method
from nlcg_optax.minimization.result import Status
from nlcg_optax.minimization.selection import apply_if, cast_like, point_at, select
from nlcg_optax.minimization.state import (
    Evaluated,
    Iterations,
    MinimizeState,
    Objective,
    Progress,
    is_first_measurement,
    rescaled,
)
from nlcg_optax.trees.inner_products import max_abs, products_and_maxima

UNBOUNDED = -1e30  # times the size of the objective at the start, if that is above 1
MAX_FAILED_SEARCHES = 4  # in a row
STALLED_MEMORY = 8  # iterations without progress, doubled, at which memory is given up
MAX_STEP_GROWTH = 10.0  # of the trial step by the ratio of successive slopes
COUNTS = 1e-4  # of the decrease so far, that a promise may be for its step to count
LEVEL = 10.0  # units of rounding by which the objective must fall to be lower


class Callback(NamedTuple):
    """What is called on the host after each iteration.

    Attributes:
      call: ``call(active, progress)``, whether the run ends; on the host.
      reach: `jax.experimental.io_callback` or, inside of other programs, a
        `jax.pure_callback`: ``vmap`` knows no other in a loop.
      point: the ``x`` of the progress for the coordinates of a point.
    """

    call: Callable[[Any, Progress], Any]
    reach: Callable[..., jax.Array]
    point: Callable[[PyTree], PyTree]


class _Taken(NamedTuple):
    """Where the search that has ended leads.

    Attributes:
      evaluated: what is known at the new point.
      params: the new point.
      is_first: whether it is where the run begins.
      accepted: whether the search ended with its conditions.
      moved: whether the point is another than before.
      best: the best point so far.
      best_params: where it lies.
      sizes: the `Sizes`, brought up to date but for the promise of the next step.
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


class _Direction(NamedTuple):
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


def iterate(
    objective: Objective,
    method: Method,
    limits: Limits,
    state: MinimizeState,
    callback: Callback | None,
    active: jax.Array,
) -> MinimizeState:
    """Takes the step of a search that has ended and sets out on the next one.

    Args:
      objective: the function to minimize.
      method: direction and line search.
      limits: when to end.
      state: a state whose search has ended.
      callback: called on the host; a true return value ends the run.
      active: whether the result counts; only the callback depends on it.

    Returns:
      The state of the next search, or the last one.
    """
    taken = _take_step(limits, state)
    scale = _scale_for(state.scale, taken)
    status, is_rescaled = state.status, scale != state.scale
    num_failed = Iterations(*state.iterations).num_failed
    num_failed = jnp.where(taken.moved, 0, num_failed + 1)
    # A failed search without any lower point: forget everything, go downhill. Likewise
    # where nothing has got smaller for 8, 16, 32, ... iterations: what is remembered
    # is rounding.
    restart = jax.lax.population_count(taken.num_stalled) == 1
    restart &= taken.num_stalled >= STALLED_MEMORY
    restart |= ~taken.moved
    direction = _next_direction(method, state, taken, restart)
    error = trial_step.after_search(ErrorEstimate(*state.error), taken.accepted)
    error = trial_step.observe(error, taken.evaluated.value)
    search, step, is_natural = _next_search(
        method, state, taken, direction, error, restart, num_failed
    )
    sizes = jnp.stack(_promise(state, taken, direction, search, is_natural))
    iterations = _count(limits, state, taken, sizes, is_natural, num_failed)
    descends = (direction.slope < 0) | is_rescaled
    status = _status(limits, taken, descends, sizes, iterations, status)
    if callback is not None:
        status = _call_back(
            callback, active & ~is_rescaled, state, taken, step, iterations, status
        )
    new = state._replace(
        current=taken.params,
        candidate=taken.evaluated,
        candidate_step=jnp.zeros_like(step),
        candidate_slope=direction.slope,
        current_grad_max=taken.evaluated.grad_max,
        best=taken.best,
        best_params=taken.best_params,
        updates=direction.updates,
        direction_state=direction.state,
        search=search,
        error=jnp.stack(error),
        previous_step=step,
        sizes=sizes,
        iterations=jnp.stack(iterations),
        status=status.astype(jnp.int32),
    )
    return apply_if(
        is_rescaled & (status == Status.RUNNING),
        lambda _, s: rescaled(objective, method, s, scale),
        new,
    )


def _take_step(limits: Limits, state: MinimizeState) -> _Taken:
    """The point that the search leads to, and how it compares with those before."""
    acc = state.previous_step.dtype
    is_first = is_first_measurement(state)
    accepted = state.search.stage == wolfe_search.ACCEPTED
    # Where nothing was taken the candidate still is the start.
    evaluated = state.candidate
    params = point_at(state.current, state.updates, state.candidate_step)
    known = Sizes(*state.sizes)
    converged = has_small_gradient(
        limits, state.sizes, evaluated.value, evaluated.grad_max
    )
    rounding = LEVEL * jnp.finfo(acc).eps
    # Values that only rounding tells apart are told apart by their gradients.
    ceiling = state.best.value + rounding * jnp.abs(state.best.value)
    as_low = evaluated.value <= jnp.minimum(ceiling, known.start_value)
    flatter = as_low & (evaluated.grad_max < 0.5 * state.best.grad_max)
    improved = converged | is_first | (evaluated.value < state.best.value) | flatter
    best, best_params = select(
        improved, (evaluated, params), (state.best, state.best_params)
    )
    lower = evaluated.value < known.level - rounding * jnp.abs(known.level)
    smaller = evaluated.grad_max < 0.5 * known.smallest_grad_max
    num_stalled = Iterations(*state.iterations).num_stalled
    return _Taken(
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


def _scale_for(scale: jax.Array, taken: _Taken) -> jax.Array:
    """The scale with which products of gradients neither overflow nor underflow.

    It changes only where the gradient has left a wide range: one more measurement is
    made then.
    """
    info = jnp.finfo(scale.dtype)
    largest, value = taken.evaluated.grad_max, jnp.abs(taken.evaluated.value)
    exponent = jnp.where(taken.is_first, 1 / 6, 1 / 3).astype(scale.dtype)
    most = jnp.exp2(info.maxexp * exponent)
    outside = (largest > most) | (largest * most < 1)
    outside &= (largest > 0) & jnp.isfinite(largest) & jnp.isfinite(value)
    # The next power of two to the gradient; the value must not overflow.
    size = jnp.maximum(largest, value * jnp.exp2(jnp.asarray(-0.7 * info.maxexp)))
    power = jax.lax.reduce_precision(size, exponent_bits=info.nexp, mantissa_bits=0)
    furthest = 2.0 ** (info.maxexp - 8)
    new = jnp.clip(scale / power, 1 / furthest, furthest)
    return jnp.where(outside, new, scale).astype(scale.dtype)


def _next_direction(
    method: Method, state: MinimizeState, taken: _Taken, restart: jax.Array
) -> _Direction:
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
    return _Direction(
        updates=select(descends, updates, grad),
        state=new,
        slope=-jnp.where(descends, u_g, g_g),
        params_max=params_max,
        updates_max=jnp.where(descends, updates_max, taken.evaluated.grad_max),
        descends=descends,
    )


def _next_search(
    method: Method,
    state: MinimizeState,
    taken: _Taken,
    direction: _Direction,
    error: ErrorEstimate,
    restart: jax.Array,
    num_failed: jax.Array,
) -> tuple[SearchState, jax.Array, jax.Array]:
    """The next search, the step just taken, and whether the next has a known length."""
    acc, value = state.previous_step.dtype, taken.evaluated.value
    moved = taken.moved & ~taken.is_first
    step = jnp.where(moved, state.candidate_step, state.previous_step)
    # After failed searches in a row set out with ever shorter steps.
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
    # Counted from the best point, so that no number of steps leads uphill by more.
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


def _promise(
    state: MinimizeState,
    taken: _Taken,
    direction: _Direction,
    search: SearchState,
    is_natural: jax.Array,
) -> Sizes:
    """The sizes with what the next step promises, if its length is known.

    After a search that failed although slopes enclose a minimizer that is known, too:
    what the secant promises from the same point.
    """
    known, ended = taken.sizes, state.search
    high_step, _, high_slope = ended.bracket[1]
    enclosed = ~taken.moved & (high_slope >= 0) & jnp.isfinite(high_slope)
    secant = ended.start_slope * (high_step / (ended.start_slope - high_slope))
    new_promise = 0.5 * search.step * jnp.abs(direction.slope)
    # A pass over the parameters, made only where it may count.
    counts = new_promise <= COUNTS * (known.start_value - taken.evaluated.value)
    counts |= (taken.num_stalled > 1) | ~taken.moved
    relative_max = jax.lax.cond(
        counts,
        lambda: max_abs(jax.tree.map(_relative, direction.updates, taken.params)),
        lambda: jnp.full_like(secant, jnp.inf),
    )
    step, promise, relative = (
        jnp.where(is_natural, new, old)
        for new, old in (
            (search.step, secant),
            (new_promise, 0.5 * secant * jnp.abs(ended.start_slope)),
            (relative_max, known.relative_max),
        )
    )
    is_known = is_natural | enclosed
    return known._replace(
        promise=jnp.where(is_known, promise, known.promise),
        relative_step=jnp.where(is_known, step * relative, known.relative_step),
        relative_max=relative_max,
    )


def _relative(update: jax.Array, param: jax.Array) -> jax.Array:
    return jnp.where(update == 0, 0, jnp.abs(update) / jnp.abs(param))


def _count(
    limits: Limits,
    state: MinimizeState,
    taken: _Taken,
    sizes: jax.Array,
    is_natural: jax.Array,
    num_failed: jax.Array,
) -> Iterations:
    nit, _, _, num_small = Iterations(*state.iterations)
    little = promises_little(limits, sizes, taken.evaluated.value)
    return Iterations(
        nit=nit + (taken.moved & ~taken.is_first).astype(jnp.int32),
        num_stalled=taken.num_stalled,
        num_failed=num_failed,
        num_small=jnp.where(is_natural, jnp.where(little, num_small + 1, 0), num_small),
    )


def _status(
    limits: Limits,
    taken: _Taken,
    descends: jax.Array,
    sizes: jax.Array,
    iterations: Iterations,
    status: jax.Array,
) -> jax.Array:
    """The status after an iteration; the last of these that holds."""
    evaluated = taken.evaluated
    is_finite = jnp.isfinite(evaluated.value) & jnp.isfinite(evaluated.grad_max)
    converged = has_small_gradient(limits, sizes, evaluated.value, evaluated.grad_max)
    trusted = steps_to_trust(limits, sizes, evaluated.grad_max)
    has_fallen = evaluated.grad_max <= FALLEN * Sizes(*sizes).largest_grad_max
    converged |= has_fallen & (iterations.num_small >= trusted)
    at_rest = (iterations.num_stalled >= STALLED) | (iterations.num_failed >= SEARCHES)
    at_rest &= is_rounding(sizes, evaluated.value, evaluated.grad_max)
    at_rest |= has_vanished(limits, sizes, evaluated.value, evaluated.grad_max)
    start_size = jnp.maximum(1, jnp.abs(Sizes(*sizes).start_value))
    for condition, code in (
        (iterations.nit >= limits.max_iterations, Status.MAX_ITERATIONS),
        (iterations.num_stalled >= limits.patience, Status.STAGNATION),
        (iterations.num_failed >= MAX_FAILED_SEARCHES, Status.NO_PROGRESS),
        (~descends, Status.NO_PROGRESS),
        (evaluated.value < UNBOUNDED * start_size, Status.UNBOUNDED_BELOW),
        (at_rest, Status.CONVERGED_TO_ROUNDING),
        (converged, Status.CONVERGED),
        (taken.is_first & ~is_finite, Status.NON_FINITE_START),
    ):
        status = jnp.where(condition, code, status)
    return status.astype(jnp.int32)


def _call_back(
    callback: Callback,
    active: jax.Array,
    state: MinimizeState,
    taken: _Taken,
    step: jax.Array,
    iterations: Iterations,
    status: jax.Array,
) -> jax.Array:
    """Calls the callback; the status after it."""
    evaluated, scale = taken.evaluated, state.scale
    progress = Progress(
        iterations.nit,
        evaluated.value / scale,
        evaluated.grad_max / scale,
        step,
        state.evaluations[0],
        state.evaluations[1],
        callback.point(taken.params),
    )
    ends = callback.reach(
        callback.call, jax.ShapeDtypeStruct((), jnp.bool_), active, progress
    )
    return jnp.where(ends & (status == Status.RUNNING), Status.STOPPED, status)


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
        lambda _, old: cast_like(method.direction.init(params), old),
        state,
    )
