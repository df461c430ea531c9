"""State of `minimize`: what its loop keeps, how it begins and how it goes on."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, accumulator_dtype
from nlcg_optax.linesearch import trial_step, wolfe_search
from nlcg_optax.linesearch.wolfe_search import SearchState
from nlcg_optax.minimization.methods import Method
from nlcg_optax.minimization.result import Status

FALLEN = 0.1  # of the largest gradient, if the value counts in the tolerance

Objective = Callable[[PyTree], tuple[jax.Array, PyTree]]


TolKind: TypeAlias = Literal["value", "absolute", "relative"]


class Limits(NamedTuple):
    """When to end; scalars, but for a name.

    Attributes:
      tol_kind: what the tolerance is relative to.
      tol: the tolerance.
      max_iterations: of iterations.
      max_evaluations: of gradients plus a third of the values.
      patience: of iterations without a smaller objective or gradient.
    """

    tol_kind: TolKind
    tol: Any
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


class Sizes(NamedTuple):
    """How large the objective and its gradient have been, for the tolerance.

    Attributes:
      start_value: the objective at x0.
      start_grad_max: largest absolute entry of the gradient there.
      largest_grad_max: the same of the largest gradient so far.
    """

    start_value: jax.Array
    start_grad_max: jax.Array
    largest_grad_max: jax.Array


class Iterations(NamedTuple):
    """Counts of iterations.

    Attributes:
      nit: line searches that moved.
      num_stalled: iterations since objective or gradient last got smaller.
      num_failed: failed searches in a row.
    """

    nit: jax.Array
    num_stalled: jax.Array
    num_failed: jax.Array


class MinimizeState(NamedTuple):
    """State of `minimize` between two measurements.

    Points, gradients and directions are in the coordinates that `minimize` works in
    (`coordinates`). Scalars of one dtype that change together are one
    vector: every array that the loop carries may cost a copy.

    Attributes:
      current: where the line search set out.
      candidate: the best point that this search has measured, at first ``current``.
      candidate_step: its step.
      candidate_slope: the slope there along the direction.
      best: the best point of all.
      best_params: where it lies.
      updates: -d for the direction d.
      direction_state: state of the direction's transformation.
      search: the running line search.
      error: an `ErrorEstimate` of the objective, as a vector.
      previous_step: the last step taken.
      sizes: `Sizes` as a vector.
      smallest_grad_max: largest absolute entry of the smallest gradient so far.
      iterations: `Iterations` as a vector.
      evaluations: number of values without a gradient and with one.
      status: a `Status`.
    """

    current: PyTree
    candidate: Evaluated
    candidate_step: jax.Array
    candidate_slope: jax.Array
    best: Evaluated
    best_params: PyTree
    updates: PyTree
    direction_state: PyTree
    search: SearchState
    error: jax.Array
    previous_step: jax.Array
    sizes: jax.Array
    smallest_grad_max: jax.Array
    iterations: jax.Array
    evaluations: jax.Array
    status: jax.Array

    @property
    def num_measured(self) -> jax.Array:
        """Points measured, with a gradient or without."""
        num_values, num_gradients = self.evaluations
        return num_values + num_gradients

    @property
    def work(self) -> jax.Array:
        """Work in gradients: a value alone counts a third."""
        num_values, num_gradients = self.evaluations
        thirds = num_values / 3
        return num_gradients.astype(thirds.dtype) + thirds


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
    infinite, zero = jnp.full([], jnp.inf, acc), jnp.zeros([], acc)
    zeros = jax.tree.map(jnp.zeros_like, x0)
    nothing = Evaluated(infinite, zeros, infinite, aux)
    return MinimizeState(
        current=x0,
        candidate=nothing,
        candidate_step=zero,
        candidate_slope=zero,
        best=nothing,
        best_params=x0,
        updates=zeros,
        direction_state=method.direction.init(x0),
        # A step of zero along no direction: the first turn measures x0.
        search=wolfe_search.start(infinite, zero, zero, zero, probe=False),
        error=jnp.stack(trial_step.no_error_estimate(acc)),
        previous_step=zero,
        sizes=jnp.stack(Sizes(infinite, infinite, zero)),
        smallest_grad_max=infinite,
        iterations=jnp.zeros([3], jnp.int32),
        evaluations=jnp.zeros([2], jnp.int32),
        status=jnp.full([], Status.RUNNING, jnp.int32),
    )


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
    within = state.work < limits.max_evaluations
    within &= Iterations(*state.iterations).nit < limits.max_iterations
    loose = (state.status == Status.CONVERGED) & ~is_converged(
        limits, state.sizes, state.candidate.value, state.candidate.grad_max
    )
    running = (limited & within) | loose
    return state._replace(
        status=jnp.where(running, Status.RUNNING, state.status).astype(jnp.int32)
    )


def onto_new_objective(
    objective: Objective, method: Method, state: MinimizeState
) -> MinimizeState:
    """Begins with another objective where an earlier run ended.

    Args:
      objective: x -> (f(x), aux), the new one.
      method: that of the earlier run.
      state: the state of the earlier run.

    Returns:
      A state whose first turn measures the point that the earlier run had come to.
      It keeps what the direction remembers and the last step, nothing else.
    """
    fresh = initial_state(objective, method, state.current)
    return fresh._replace(
        direction_state=state.direction_state, previous_step=state.previous_step
    )


def is_converged(
    limits: Limits, sizes: jax.Array, value: jax.Array, grad_max: jax.Array
) -> jax.Array:
    """Whether the gradient at a point is as small as the limits ask.

    Args:
      limits: the tolerance and what it is relative to.
      sizes: `Sizes` as a vector.
      value: the objective there.
      grad_max: largest absolute entry of the gradient there.

    Returns:
      A boolean scalar.
    """
    if limits.tol_kind == "absolute":
        return grad_max <= limits.tol
    known = Sizes(*sizes)
    if limits.tol_kind == "relative":
        return grad_max <= limits.tol * known.start_grad_max

    def is_small(size: jax.Array) -> jax.Array:
        return grad_max <= limits.tol * (1 + size)

    # On the way to minus infinity any gradient gets small against the value. Below
    # -|f(x0)| it must have fallen, too.
    size = jnp.abs(value)
    has_fallen = grad_max <= FALLEN * known.largest_grad_max
    small_by_both = is_small(jnp.minimum(size, jnp.abs(known.start_value)))
    return small_by_both | (is_small(size) & has_fallen)
