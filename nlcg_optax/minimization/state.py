"""State of `minimize`: what its loop keeps, how it begins and how it resumes."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, accumulator_dtype, times
from nlcg_optax.linesearch import trial_step, wolfe_search
from nlcg_optax.linesearch.wolfe_search import SearchState
from nlcg_optax.minimization.convergence import (
    Limits,
    Sizes,
    has_small_gradient,
    has_vanished,
    is_small_fraction,
    no_sizes,
    promises_little,
)
from nlcg_optax.minimization.coordinates import LONGEST_VECTOR
from nlcg_optax.minimization.methods import Method
from nlcg_optax.minimization.result import Status

# Units of rounding of the decrease so far by which the values of two programs for one
# objective may differ; besides by half of the digits of the value.
ROUNDINGS_OF_FALL = 1e3
# A second look searches up to three times in each of two kinds of units; the second of
# these searches only measures a point next to the best one.
SEARCHES_IN_UNITS, NEIGHBOR = 3, 2


class Objective(NamedTuple):
    """The function to minimize, times a scale, in the coordinates of `minimize`.

    Attributes:
      value: ``value(x, scale)``, a scalar of the dtype of ``scale``.
      value_and_grad: ``value_and_grad(x, scale)``, that is ``((value, aux), grad)``.
    """

    value: Callable[[PyTree, jax.Array], jax.Array]
    value_and_grad: Callable[
        [PyTree, jax.Array], tuple[tuple[jax.Array, PyTree], PyTree]
    ]


def objective_of(fun: Callable[[PyTree], tuple[jax.Array, PyTree]]) -> Objective:
    """Makes an `Objective` of a function that returns a value and an auxiliary tree.

    Examples:
      >>> import jax.numpy as jnp
      >>> half = objective_of(lambda x: (x**2, None))
      >>> half.value_and_grad(jnp.float32(3.), jnp.float32(0.5))[1]
      Array(3., dtype=float32)
    """

    def value_and_aux(x: PyTree, scale: jax.Array) -> tuple[jax.Array, PyTree]:
        value, aux = fun(x)
        # The scale multiplies what reverse mode begins with: no pass over the gradient.
        return value.astype(scale.dtype) * scale, aux

    return Objective(
        value=lambda x, scale: value_and_aux(x, scale)[0],
        value_and_grad=jax.value_and_grad(value_and_aux, has_aux=True),
    )


class Progress(NamedTuple):
    """Argument of the callback of `minimize`, at the start and after each iteration.

    Attributes:
      nit: iterations so far, zero at the start.
      fun: the objective.
      grad_max: largest absolute entry of the gradient.
      step_size: the last step taken.
      nfev: values measured so far without a gradient.
      ngev: values measured so far with one.
      x: the point, like ``x0``, if the callback asks for it, else None.
    """

    nit: jax.Array
    fun: jax.Array
    grad_max: jax.Array
    step_size: jax.Array
    nfev: jax.Array
    ngev: jax.Array
    x: PyTree = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layout:
    """The tree that the coordinates of a state stand for; no arrays.

    Attributes:
      text: its shapes and dtypes.
    """

    text: str


class Evaluated(NamedTuple):
    """What is known at a point.

    Attributes:
      value: the objective.
      grad: its gradient.
      grad_max: largest absolute entry of the gradient.
      aux: auxiliary output of the objective, or None.
    """

    value: jax.Array
    grad: PyTree
    grad_max: jax.Array
    aux: PyTree


class Iterations(NamedTuple):
    """Counts of iterations.

    Attributes:
      nit: line searches that moved.
      num_stalled: iterations since objective or gradient last got smaller.
      num_failed: failed searches in a row.
      num_small: promises in a row as small as the tolerance asks.
      put_off: the status that a second look has put off.
      look: the number of the search in a second look, zero outside of one.
    """

    nit: jax.Array
    num_stalled: jax.Array
    num_failed: jax.Array
    num_small: jax.Array
    put_off: jax.Array
    look: jax.Array


class MinimizeState(NamedTuple):
    """State of `minimize` between two measurements.

    Points, gradients and directions are in the coordinates that `minimize` works in
    (`coordinates`). Scalars of one dtype that change together form one vector: every
    array that the loop carries may cost a copy.

    Attributes:
      current: the start of the line search.
      candidate: the best point that this search has measured, at first ``current``.
      candidate_step: its step.
      candidate_slope: the slope there along the direction.
      current_grad_max: largest absolute entry of the gradient at ``current``.
      best: the best point of all.
      best_params: where it lies.
      start_grad: the gradient at x0; None if x0 has more than `LONGEST_VECTOR` numbers.
      updates: -d for the direction d.
      direction_state: state of the direction's transformation.
      search: the running line search.
      error: an `ErrorEstimate` of the objective, as a vector.
      previous_step: the last step taken.
      sizes: `Sizes` as a vector.
      scale: factor of the objective and its gradient, a power of two, so that products
        of gradients neither overflow nor underflow; it multiplies all values.
      iterations: `Iterations` as a vector.
      evaluations: number of values without a gradient and with one.
      status: a `Status`.
      layout: the tree of parameters, by its shapes.
    """

    current: PyTree
    candidate: Evaluated
    candidate_step: jax.Array
    candidate_slope: jax.Array
    current_grad_max: jax.Array
    best: Evaluated
    best_params: PyTree
    start_grad: PyTree
    updates: PyTree
    direction_state: PyTree
    search: SearchState
    error: jax.Array
    previous_step: jax.Array
    sizes: jax.Array
    scale: jax.Array
    iterations: jax.Array
    evaluations: jax.Array
    status: jax.Array
    layout: Layout

    @property
    def work(self) -> jax.Array:
        """Work in gradients: a value alone counts a third."""
        num_values, num_gradients = self.evaluations
        thirds = num_values / 3
        return num_gradients.astype(thirds.dtype) + thirds


def initial_state(
    objective: Objective, method: Method, x0: PyTree, layout: Layout
) -> MinimizeState:
    """The state before the first measurement, which is that of ``x0`` itself.

    Args:
      objective: the function to minimize.
      method: direction and line search.
      x0: a tree of real floating-point arrays.
      layout: the tree that these are coordinates of.

    Returns:
      A state whose first turn measures ``x0``.
    """
    acc = accumulator_dtype(x0)
    scale = jnp.ones([], acc)
    (_, aux_shape), _ = jax.eval_shape(objective.value_and_grad, x0, scale)
    aux = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), aux_shape)
    infinite, zero = jnp.full([], jnp.inf, acc), jnp.zeros([], acc)
    zeros = jax.tree.map(jnp.zeros_like, x0)
    nothing = Evaluated(infinite, zeros, infinite, aux)
    is_small = sum(leaf.size for leaf in jax.tree.leaves(x0)) <= LONGEST_VECTOR
    return MinimizeState(
        current=x0,
        candidate=nothing,
        candidate_step=zero,
        candidate_slope=zero,
        current_grad_max=infinite,
        best=nothing,
        best_params=x0,
        start_grad=zeros if is_small else None,
        updates=zeros,
        direction_state=method.direction.init(x0),
        # A step of zero along no direction: the first turn measures x0.
        search=wolfe_search.start(infinite, zero, zero, zero, probe=False),
        error=jnp.stack(trial_step.no_error_estimate(acc)),
        previous_step=zero,
        sizes=jnp.stack(no_sizes(acc)),
        scale=scale,
        iterations=jnp.zeros([len(Iterations._fields)], jnp.int32),
        evaluations=jnp.zeros([2], jnp.int32),
        status=jnp.asarray(int(Status.RUNNING), jnp.int32),
        layout=layout,
    )


def resume(objective: Objective, limits: Limits, state: MinimizeState) -> MinimizeState:
    """Resumes a run under new limits.

    Args:
      objective: the function to minimize, that of the earlier run.
      limits: the new limits.
      state: the state of an earlier run.

    Returns:
      The state. It runs again if a limit or the callback had ended it, or it had
      converged to a looser tolerance, and the new limits leave room. If the new
      tolerance is met, it has converged, for whatever reason it had ended. If the
      objective is another one, the state says so and does not run.
    """
    nit, num_stalled, *_ = Iterations(*state.iterations)
    best, status = state.best, state.status
    is_met = has_small_gradient(limits, state.sizes, best.value, best.grad_max)
    within = state.work < limits.max_evaluations
    within &= nit < limits.max_iterations
    # A single promise says little, unless several of them had ended the run, or it is
    # all that will be known.
    had_converged = status == Status.CONVERGED
    trusted = ~within & is_small_fraction(limits, state.sizes, best.grad_max)
    trusted |= had_converged
    is_met |= trusted & promises_little(limits, state.sizes, state.candidate.value)
    is_met |= has_vanished(limits, state.sizes, best.value, best.grad_max)[0]
    is_met &= jnp.isfinite(best.value) & (status != Status.UNBOUNDED_BELOW)
    limited = (status == Status.MAX_ITERATIONS) | (status == Status.MAX_EVALUATIONS)
    limited |= (status == Status.STOPPED) | (status == Status.OTHER_OBJECTIVE)
    limited |= (status == Status.STAGNATION) & (num_stalled < limits.patience)
    if limits.tol_kind == "decrease":  # after a search in vain there is no promise
        had_converged &= within | jnp.isfinite(Sizes(*state.sizes).promise)
    limited |= had_converged
    runs = limited & within
    exceeded = jnp.where(
        nit >= limits.max_iterations, Status.MAX_ITERATIONS, Status.MAX_EVALUATIONS
    )
    status = jnp.where(limited & ~within, exceeded, status)
    status = jnp.where(
        is_met, Status.CONVERGED, jnp.where(runs, Status.RUNNING, status)
    )
    is_other = _has_another_value(objective, state)
    status = jnp.where(is_other, Status.OTHER_OBJECTIVE, status)
    return state._replace(status=status.astype(jnp.int32))


def _has_another_value(objective: Objective, state: MinimizeState) -> jax.Array:
    """Whether an objective differs at the best point by more than any rounding."""
    known = state.best.value
    eps = float(jnp.finfo(known.dtype).eps)
    change = jnp.abs(objective.value(state.best_params, state.scale) - known)
    fallen = jnp.abs(Sizes(*state.sizes).start_value - known)
    most = math.sqrt(eps) * jnp.abs(known) + ROUNDINGS_OF_FALL * eps * fallen
    return jnp.isfinite(known) & ~(change <= most)


def onto_new_objective(
    objective: Objective, method: Method, state: MinimizeState
) -> MinimizeState:
    """Begins with another objective where an earlier run ended.

    Args:
      objective: the new function.
      method: that of the earlier run.
      state: the state of the earlier run.

    Returns:
      A state whose first turn measures the point that the earlier run had reached. It
      keeps only the memory of the direction, the scale, and whether there was a step.
    """
    fresh = initial_state(objective, method, state.current, state.layout)
    # The memory of the direction has the scale of the earlier objective.
    sizes = Sizes(*fresh.sizes)._replace(scale=state.scale)
    return fresh._replace(
        direction_state=state.direction_state,
        previous_step=state.previous_step,
        scale=state.scale,
        sizes=jnp.stack(sizes),
    )


def rescaled(
    objective: Objective, method: Method, state: MinimizeState, scale: jax.Array
) -> MinimizeState:
    """Begins anew at the current point with another scale of the objective.

    Args:
      objective: the function to minimize.
      method: that of the run.
      state: a state whose ``current`` is the point to continue from.
      scale: the new factor of the objective.

    Returns:
      A state whose first turn measures that point; the counters continue.
    """
    fresh = initial_state(objective, method, state.current, state.layout)
    factor = scale / state.scale
    known = Sizes(*state.sizes).times(factor)
    # At the start the value may have been lost to underflow: it is measured anew.
    unknown = Sizes(*fresh.sizes)._replace(scale=scale)
    begins = Iterations(*state.iterations).nit == 0
    best = jax.tree.map(
        lambda x: times(factor, x).astype(x.dtype), state.best._replace(aux=())
    )
    is_kept = jnp.isfinite(best.value) & jnp.isfinite(best.grad_max)
    best = best._replace(aux=state.best.aux)
    return fresh._replace(
        best=jax.tree.map(lambda x, y: jnp.where(is_kept, x, y), best, fresh.best),
        best_params=state.best_params,
        start_grad=jax.tree.map(
            lambda g: times(factor, g).astype(g.dtype), state.start_grad
        ),
        scale=scale,
        sizes=jnp.where(begins, jnp.stack(unknown), jnp.stack(known)),
        iterations=state.iterations,
        evaluations=state.evaluations,
        status=state.status,
    )


def is_first_measurement(state: MinimizeState) -> jax.Array:
    """Whether the search measures its own start, whose value is unknown."""
    return jnp.isposinf(state.search.start_value)


def is_neighbor(state: MinimizeState) -> jax.Array:
    """Whether the search only measures a neighbor, accepted if it is finite."""
    return Iterations(*state.iterations).look % SEARCHES_IN_UNITS == NEIGHBOR
