"""One iteration of `minimize`, between two line searches.

The step of the search that has ended is taken, the direction's transformation gives the
next direction, the next search begins, and the status says whether there is one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, power_of_two
from nlcg_optax.linesearch import early_ends, trial_step
from nlcg_optax.linesearch.trial_step import ErrorEstimate
from nlcg_optax.linesearch.wolfe_search import SearchState
from nlcg_optax.minimization.convergence import (
    FALLEN,
    SEARCHES,
    STALLED,
    STALLED_GRADIENT,
    STALLED_PART,
    Limits,
    Sizes,
    has_small_gradient,
    has_vanished,
    is_rounding,
    is_too_large,
    promises_little,
    steps_to_trust,
)
from nlcg_optax.minimization.methods import Method
from nlcg_optax.minimization.next_search import Direction, next_direction, next_search
from nlcg_optax.minimization.result import Status
from nlcg_optax.minimization.second_look import LOOKS, found_descent, second_look
from nlcg_optax.minimization.state import (
    Iterations,
    MinimizeState,
    Objective,
    Progress,
    is_neighbor,
    rescaled,
)
from nlcg_optax.minimization.step_taken import Taken, take_step
from nlcg_optax.trees.inner_products import products_and_maxima
from nlcg_optax.xla.control_flow import apply_if, cond

# f counts as unbounded if it is less than minus this many times its size at the start
# (at least 1), or minus this part of the largest number, where a step may overflow.
UNBOUNDED, NEARLY_INFINITE = 1e30, 1 / 64
MAX_FAILED_SEARCHES = 4  # in a row
STALLED_MEMORY = 8  # stalled iterations that reset the memory; doubled, again
COUNTS = 1e-4  # a promise counts up to this part of the decrease so far


class Callback(NamedTuple):
    """What is called on the host at the start and after each iteration.

    Attributes:
      call: ``call(active, progress)``, whether the run ends; on the host.
      reach: `jax.experimental.io_callback` or, inside of other programs, a
        `jax.pure_callback`: ``vmap`` supports no other in a loop.
      point: from the coordinates of a point to the ``x`` of the progress.
    """

    call: Callable[[Any, Progress], Any]
    reach: Callable[..., jax.Array]
    point: Callable[[PyTree], PyTree]


def iterate(
    objective: Objective,
    method: Method,
    limits: Limits,
    state: MinimizeState,
    callback: Callback | None,
    active: jax.Array,
) -> MinimizeState:
    """Takes the step of a search that has ended and starts the next one.

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
    taken = take_step(limits, state)
    scale = _scale_for(state.scale, taken)
    status, is_rescaled = state.status, scale != state.scale
    before = Iterations(*state.iterations)
    num_failed = jnp.where(taken.moved, 0, before.num_failed + 1)
    is_look = before.look > 0
    # If a search found no lower point, reset the direction and follow the negative
    # gradient. Likewise if nothing has got smaller for 8, 16, 32, ... iterations: the
    # memory then consists of rounding errors, as does the secant pair of a neighbor.
    restart = jax.lax.population_count(taken.num_stalled) == 1
    restart &= taken.num_stalled >= STALLED_MEMORY
    restart |= ~taken.moved | is_neighbor(state)
    if method.initial_step == "previous":  # its directions would not be conjugate
        restart |= is_look
    direction = next_direction(method, state, taken, restart)
    error = trial_step.after_search(ErrorEstimate(*state.error), taken.accepted)
    error = trial_step.observe(error, taken.evaluated.value)
    search, step, is_natural = next_search(
        method, state, taken, direction, error, restart, num_failed
    )
    sizes = jnp.stack(_promise(state, taken, direction, search, is_natural))
    iterations = _count(limits, state, taken, sizes, is_natural, num_failed)
    descends = (direction.slope < 0) | is_rescaled
    in_noise = ~taken.moved & early_ends.is_noise(state.search)
    status = _status(limits, taken, descends, sizes, iterations, in_noise, status)
    in_vain = is_look & ~found_descent(state, taken)
    status = jnp.where(in_vain, before.put_off, status)
    looks_again = ~in_vain & (status == Status.CONVERGED_TO_ROUNDING)
    if limits.tol_kind == "decrease":
        looks_again |= ~in_vain & (status == Status.CONVERGED)
    looks_again |= in_vain & (before.look < LOOKS)
    if callback is not None:
        # Not for failed searches, neighbors and second looks in vain.
        active &= ~is_rescaled & (taken.is_first | (iterations.nit > before.nit))
        status, ends = _call_back(
            callback, active, state, taken, step, iterations, status
        )
        looks_again &= ~ends
    new = state._replace(
        current=taken.params,
        candidate=taken.evaluated,
        candidate_step=jnp.zeros_like(step),
        candidate_slope=direction.slope,
        current_grad_max=taken.evaluated.grad_max,
        best=taken.best,
        best_params=taken.best_params,
        start_grad=jax.tree.map(
            lambda new, old: jnp.where(taken.is_first & (before.nit == 0), new, old),
            taken.evaluated.grad if state.start_grad is not None else None,
            state.start_grad,
        ),
        updates=direction.updates,
        direction_state=direction.state,
        search=search,
        error=jnp.stack(error),
        previous_step=step,
        sizes=sizes,
        iterations=jnp.stack(iterations),
        status=status.astype(jnp.int32),
    )
    look = jnp.where(in_vain, before.look + 1, 1)
    new = apply_if(looks_again, lambda _, s: second_look(limits, s, look), new)
    # A look for which no iteration is left is made if the run is resumed.
    cut = looks_again & (new.status == Status.RUNNING)
    cut &= iterations.nit >= limits.max_iterations
    limit = jnp.asarray(int(Status.MAX_ITERATIONS), new.status.dtype)
    new = new._replace(status=jnp.where(cut, limit, new.status))
    return apply_if(
        is_rescaled & (status == Status.RUNNING),
        lambda _, s: rescaled(objective, method, s, scale),
        new,
    )


def _scale_for(scale: jax.Array, taken: Taken) -> jax.Array:
    """The scale with which products of gradients neither overflow nor underflow.

    It changes only if the gradient has left a wide range; one more measurement is then
    made.
    """
    info = jnp.finfo(scale.dtype)
    largest, value = taken.evaluated.grad_max, jnp.abs(taken.evaluated.value)
    exponent = jnp.where(taken.is_first, 1 / 6, 1 / 3).astype(scale.dtype)
    most = jnp.exp2(info.maxexp * exponent)
    outside = (largest > most) | (largest * most < 1)
    outside &= (largest > 0) & jnp.isfinite(largest) & jnp.isfinite(value)
    # The power of two next to the gradient; the value must not overflow.
    size = jnp.maximum(largest, value * jnp.exp2(jnp.asarray(-0.7 * info.maxexp)))
    furthest = 2.0 ** (info.maxexp - 8)
    new = jnp.clip(scale / power_of_two(size), 1 / furthest, furthest)
    return jnp.where(outside, new, scale).astype(scale.dtype)


def _promise(
    state: MinimizeState,
    taken: Taken,
    direction: Direction,
    search: SearchState,
    is_natural: jax.Array,
) -> Sizes:
    """The sizes with what the next step promises, if its length is known.

    The length is also known after a failed search whose slopes enclose a minimizer: the
    promise is then that of the secant from the same point.
    """
    known, ended = taken.sizes, state.search
    high_step, _, high_slope = ended.bracket[1]
    enclosed = ~taken.moved & (high_slope >= 0) & jnp.isfinite(high_slope)
    secant = ended.start_slope * (high_step / (ended.start_slope - high_slope))
    new_promise = 0.5 * search.step * jnp.abs(direction.slope)
    # A pass over the parameters, made only where it may count.
    counts = new_promise <= COUNTS * (known.start_value - taken.evaluated.value)
    counts |= (taken.num_stalled > 1) | ~taken.moved
    relative_max, moved_max = cond(
        counts,
        lambda: _maxima(direction.updates, taken.params),
        lambda: (jnp.full_like(secant, jnp.inf), jnp.zeros_like(secant)),
    )
    # Products of steps of a parameter this large overflow, so that the direction has
    # learned nothing and its promise is meaningless.
    too_large = is_too_large(moved_max)
    step, promise, relative = (
        jnp.where(is_natural, new, old)
        for new, old in (
            (search.step, secant),
            (new_promise, 0.5 * secant * jnp.abs(ended.start_slope)),
            (relative_max, known.relative_max),
        )
    )
    is_known = is_natural | enclosed
    promise = jnp.where(is_known, promise, known.promise)
    relative_step = jnp.where(is_known, step * relative, known.relative_step)
    return known._replace(
        promise=jnp.where(too_large, jnp.inf, promise),
        relative_step=jnp.where(too_large, jnp.inf, relative_step),
        relative_max=relative_max,
    )


def _maxima(updates: PyTree, params: PyTree) -> tuple[jax.Array, jax.Array]:
    """The largest relative update, and the largest parameter that is updated."""

    def relative(update: jax.Array, param: jax.Array) -> jax.Array:
        return jnp.where(update == 0, 0, jnp.abs(update) / jnp.abs(param))

    def moved(update: jax.Array, param: jax.Array) -> jax.Array:
        return jnp.where(update == 0, 0, param)

    trees = [jax.tree.map(of, updates, params) for of in (relative, moved)]
    _, (relative_max, moved_max) = products_and_maxima([], trees)
    return relative_max, moved_max


def _count(
    limits: Limits,
    state: MinimizeState,
    taken: Taken,
    sizes: jax.Array,
    is_natural: jax.Array,
    num_failed: jax.Array,
) -> Iterations:
    before = Iterations(*state.iterations)
    nit, num_small = before.nit, before.num_small
    little = promises_little(limits, sizes, taken.evaluated.value)
    searched = taken.moved & ~taken.is_first & ~is_neighbor(state)
    return Iterations(
        nit=nit + searched.astype(jnp.int32),
        num_stalled=taken.num_stalled,
        num_failed=num_failed,
        num_small=jnp.where(is_natural, jnp.where(little, num_small + 1, 0), num_small),
        put_off=jnp.zeros_like(nit),
        look=jnp.zeros_like(nit),
    )


def _status(
    limits: Limits,
    taken: Taken,
    descends: jax.Array,
    sizes: jax.Array,
    iterations: Iterations,
    in_noise: jax.Array,
    status: jax.Array,
) -> jax.Array:
    """The status after an iteration: that of the last condition that holds."""
    evaluated, known = taken.evaluated, Sizes(*sizes)
    is_finite = jnp.isfinite(evaluated.value) & jnp.isfinite(evaluated.grad_max)
    converged = has_small_gradient(limits, sizes, evaluated.value, evaluated.grad_max)
    converged &= evaluated.value <= known.start_value
    trusted = steps_to_trust(limits, sizes, evaluated.grad_max)
    has_fallen = evaluated.grad_max <= FALLEN * known.largest_grad_max
    converged |= has_fallen & (iterations.num_small >= trusted)
    stalled = STALLED if limits.tol_kind == "decrease" else STALLED_GRADIENT
    at_rest = iterations.num_stalled >= stalled
    at_rest &= STALLED_PART * iterations.num_stalled >= iterations.nit
    no_descent = iterations.num_failed >= SEARCHES
    at_rest |= no_descent
    at_rest &= is_rounding(sizes, evaluated.value, evaluated.grad_max)
    at_rest |= no_descent & in_noise & has_fallen & jnp.isfinite(known.promise)
    vanished = has_vanished(limits, sizes, evaluated.value, evaluated.grad_max)
    converged |= vanished[0] & ~vanished[1]
    at_rest |= vanished[1]
    start_size = jnp.maximum(jnp.abs(known.start_value), known.start_grad_max)
    start_size = jnp.maximum(1, start_size)
    most = float(jnp.finfo(start_size.dtype).max) * NEARLY_INFINITE
    least_value = -jnp.minimum(UNBOUNDED * start_size, most)
    for condition, code in (
        (iterations.nit >= limits.max_iterations, Status.MAX_ITERATIONS),
        (iterations.num_stalled >= limits.patience, Status.STAGNATION),
        (iterations.num_failed >= MAX_FAILED_SEARCHES, Status.NO_PROGRESS),
        (~descends, Status.NO_PROGRESS),
        (evaluated.value < least_value, Status.UNBOUNDED_BELOW),
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
    taken: Taken,
    step: jax.Array,
    iterations: Iterations,
    status: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Calls the callback; returns the status after it, and whether it ends the run."""
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
    stopped = ends & (status == Status.RUNNING)
    return jnp.where(stopped, Status.STOPPED, status), ends
