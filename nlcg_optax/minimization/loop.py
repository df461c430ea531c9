"""The loop of `minimize`: outer iteration and line search as one state machine.

Each turn of the loop measures one point and hands it to the line search. If the search
ends, the same turn takes the step, computes the next direction and starts the next
search. So there is one loop with one gradient in it, and under ``vmap`` every problem
advances at its own pace.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree
from nlcg_optax.linesearch import early_ends, wolfe_search
from nlcg_optax.linesearch.wolfe_search import SearchState, WolfeRules
from nlcg_optax.minimization.convergence import (
    Limits,
    Sizes,
    has_small_gradient,
    is_rounding,
    is_too_large,
)
from nlcg_optax.minimization.iteration import Callback, iterate
from nlcg_optax.minimization.methods import Method
from nlcg_optax.minimization.result import Status
from nlcg_optax.minimization.state import (
    SEARCHES_IN_UNITS,
    Evaluated,
    Iterations,
    MinimizeState,
    Objective,
    is_first_measurement,
    is_neighbor,
)
from nlcg_optax.minimization.step_taken import point_at
from nlcg_optax.trees.inner_products import products_and_maxima
from nlcg_optax.xla.control_flow import apply_if, cond, while_loop

# Limits on the points of a search that is unlikely to gain much: if it can gain only
# rounding, or in the last part of a second look; and if its values are noise, or in the
# first part.
SHORT_SEARCH, LONG_SEARCH = 8, 16
LEAP = 0.25  # a leap changes a parameter by more than this part of its new value
# How far the value falls on the way to a minimum, as a part of what the slope at the
# start promises: along a parabola and along a line; and the tolerance of that part.
PARTS, NEAR = (0.5, 1.0), 0.02
EARLY = 5  # first iterations, in which these parts are checked


class _Measured(NamedTuple):
    """The fields of `MinimizeState` that a measurement changes, except counters."""

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
    callback: Callback | None = None,
    max_turns: jax.Array | None = None,
) -> MinimizeState:
    """Measures and steps until a limit or the status ends the run.

    Args:
      objective: the function to minimize.
      method: direction and line search.
      limits: when to end.
      state: a new one from `initial_state`, or that of an earlier run.
      callback: called on the host at the start and after each iteration; a true
        return value ends the run.
      max_turns: limit on turns of the loop; the state may then still be running.

    Returns:
      The last state; its ``status`` says why it is the last.
    """

    def continues(state: MinimizeState) -> jax.Array:
        within = state.work < limits.max_evaluations
        return (state.status == Status.RUNNING) & within

    def body(carry: tuple[jax.Array, Any, MinimizeState]) -> Any:
        runs, turns, state = carry
        state = _measure(objective, method, limits, state)
        # A problem of a batch that has ended must not be reported to the callback.
        ended = runs & ~wolfe_search.is_running(state.search)
        state = apply_if(
            ended,
            lambda active, s: iterate(objective, method, limits, s, callback, active),
            state,
        )
        runs = continues(state)
        if max_turns is not None:
            turns += 1
            runs &= turns < max_turns
        return runs, turns, state

    # The condition is a boolean: from an integer a compiler may infer a trip count.
    turns = None if max_turns is None else jnp.zeros_like(max_turns)
    start = continues(state), turns, state
    end = while_loop(lambda carry: carry[0], body, start)[2]
    spent = (end.status == Status.RUNNING) & (end.work >= limits.max_evaluations)
    status = jnp.where(spent, Status.MAX_EVALUATIONS, end.status)
    return end._replace(status=status.astype(jnp.int32))


def _measure(
    objective: Objective, method: Method, limits: Limits, state: MinimizeState
) -> MinimizeState:
    """Measures the point that the search asks for and advances the search."""
    needs_gradient = wolfe_search.needs_gradient(state.search)
    rules = _rules_of_search(method, state)

    def with_gradient() -> _Measured:
        return _measure_gradient(objective, rules, limits, state)

    def value_alone() -> _Measured:
        point = point_at(state.current, state.updates, state.search.step)
        value = objective.value(point, state.scale)
        return _Measured(
            wolfe_search.advance_probe(rules, state.search, value),
            *(getattr(state, field) for field in _Measured._fields[1:]),
        )

    # Advanced inside the branches, so that no loop over parameters computes it again.
    measured = cond(needs_gradient, with_gradient, value_alone)
    return state._replace(
        **measured._asdict(),
        evaluations=state.evaluations
        + jnp.stack([~needs_gradient, needs_gradient]).astype(jnp.int32),
    )


def _rules_of_search(method: Method, state: MinimizeState) -> WolfeRules:
    """The rules of the line search; it is short if it is unlikely to gain much."""
    current = state.search.start_value, state.current_grad_max
    # Not while the step still grows: a valley may begin with steps that gain nothing.
    enclosed = jnp.isfinite(state.search.bracket[1, 0])
    look = Iterations(*state.iterations).look
    most: Any = method.rules.max_evaluations
    for condition, points in (
        (enclosed & early_ends.is_noise(state.search), LONG_SEARCH),
        (enclosed & is_rounding(state.sizes, *current), SHORT_SEARCH),
        (look > 0, LONG_SEARCH),
        (look > SEARCHES_IN_UNITS, SHORT_SEARCH),
    ):
        most = jnp.where(condition, points, most)
    return method.rules._replace(max_evaluations=most)


def _measure_gradient(
    objective: Objective, rules: WolfeRules, limits: Limits, state: MinimizeState
) -> _Measured:
    """Measures value and gradient."""
    search = state.search
    is_first = is_first_measurement(state)
    params = point_at(state.current, state.updates, search.step)
    (value, aux), grad = objective.value_and_grad(params, state.scale)
    (u_g,), (grad_max,) = products_and_maxima(
        [(state.updates, grad)], [grad], dtype=value.dtype
    )
    usable = jnp.isfinite(value) & jnp.isfinite(grad_max)
    # A plateau above the start, which the tolerance of a search may admit, counts as
    # not finite: no search can continue from it. So does one that a leap has reached.
    on_plateau = (grad_max <= 0) & (value > search.start_value)
    vanished = grad_max <= float(jnp.finfo(value.dtype).eps) * state.current_grad_max
    on_plateau |= cond(
        vanished & ~is_first,
        lambda: _leapt_to_a_plateau(state, params, value, grad_max),
        lambda: jnp.zeros([], jnp.bool_),
    )
    usable &= ~on_plateau
    value = jnp.where(on_plateau, jnp.inf, value)
    # A gradient with an infinite entry must not pass for one with a good slope.
    slope = jnp.where(usable, -u_g, jnp.nan)
    known = Sizes(*state.sizes)
    # If the scale has changed, this repeats the first measurement: the start is known.
    starts = is_first & jnp.isposinf(known.start_value)
    sizes = jnp.stack(
        known._replace(
            start_value=jnp.where(starts, value, known.start_value),
            start_grad_max=jnp.where(starts, grad_max, known.start_grad_max),
            largest_grad_max=jnp.maximum(
                known.largest_grad_max, jnp.where(usable, grad_max, 0)
            ),
        )
    )

    # Converged wherever the search happens to be, but never uphill.
    level = value <= search.start_value + search.tolerance
    converged = usable & level & has_small_gradient(limits, sizes, value, grad_max)
    accepted = wolfe_search.accepts(rules, search, value, slope)
    accepted |= converged | is_first | (usable & is_neighbor(state))
    lower = usable & (value < state.candidate.value)
    advanced = wolfe_search.advance_point(rules, search, value, slope)

    def taken() -> tuple[Evaluated, jax.Array, jax.Array]:
        point = Evaluated(value, grad, grad_max, aux)
        cast = optax.tree.cast_like(point, state.candidate)
        return cast, search.step, slope

    candidate, candidate_step, candidate_slope = cond(
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


def _leapt_to_a_plateau(
    state: MinimizeState, params: PyTree, value: jax.Array, grad_max: jax.Array
) -> jax.Array:
    """Whether a gradient vanished only because a step went past all slopes.

    A minimum is recognized by its value: along a straight line, to a kink, it falls by
    what the slope at the start promises, and along a parabola by half of that. If it
    fell by any other amount, the search continues with shorter steps. The test applies
    to leaps of the first searches, which have no natural length and may change a
    parameter by more than a quarter of itself; later searches may leap to a minimum of
    any shape. Where products of parameters overflow and slopes underflow, the fall must
    be that of a parabola, without a leap.
    """

    def moved(part: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
        def largest(old: jax.Array, new: jax.Array) -> jax.Array:
            change, size = jnp.abs(new - old), jnp.abs(new)
            return jnp.where(change > part * size, jnp.maximum(change, size), 0)

        return largest

    search = state.search
    trees = [jax.tree.map(moved(part), state.current, params) for part in (0, LEAP)]
    _, (largest, leapt) = products_and_maxima([], trees, dtype=search.step.dtype)
    fallen = search.start_value - value
    promised = -search.start_slope * search.step
    part = fallen / jnp.where(promised > 0, promised, 1)
    explained = jnp.abs(part - jnp.asarray(PARTS, part.dtype)) < NEAR
    is_early = Iterations(*state.iterations).nit < EARLY
    is_parabola, _ = explained
    moved_max = jnp.where(is_parabola, leapt, largest)
    is_beyond = (grad_max <= 0) & is_too_large(moved_max)
    return is_beyond | (is_early & (leapt > 0) & ~jnp.any(explained))
