"""The Hager-Zhang approximate-Wolfe line search as an Optax transformation."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, accumulator_dtype, select, strong_types, times
from nlcg_optax.linesearch import early_ends, trial_step, wolfe_search
from nlcg_optax.linesearch.options import Options, checked_options
from nlcg_optax.linesearch.state import (
    HagerZhangDiagnostics,
    ScaleByHagerZhangLinesearchState,
)
from nlcg_optax.linesearch.trial_step import ErrorEstimate
from nlcg_optax.linesearch.wolfe_search import SearchState, WolfeRules
from nlcg_optax.transformation import as_arrays, transformation
from nlcg_optax.trees.inner_products import products_and_maxima, vdots
from nlcg_optax.wrappers.extra_args import bind_extra_args
from nlcg_optax.xla.control_flow import cond, while_loop
from nlcg_optax.xla.known import is_known

NAME = "scale_by_hager_zhang_linesearch"


def scale_by_hager_zhang_linesearch(
    *,
    sufficient_decrease: float | jax.Array = 0.1,
    max_slope_ratio: float | jax.Array = 0.9,
    initial_step: Literal["previous", "one"] = "previous",
    quadratic_step: bool | Literal["adaptive"] = True,
    max_evaluations: int = 50,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales a descent direction by the Hager-Zhang line search.

    Along :math:`\varphi(t) = f(x + t d)` it finds a step that satisfies either the
    Wolfe or the approximate Wolfe conditions,

    .. math::
        \varphi(t) \le \varphi(0) + \delta t \varphi'(0), \quad
        \varphi'(t) \ge \sigma \varphi'(0) \qquad\text{or}\\
        (2\delta - 1) \varphi'(0) \ge \varphi'(t) \ge \sigma \varphi'(0), \quad
        \varphi(t) \le \varphi(0) + \epsilon_k.

    The second form is equivalent to the first on a parabola, and can be tested even
    where differences of φ are round-off, which :math:`\epsilon_k` estimates
    (`nlcg_optax.linesearch.trial_step.tolerance`). A bracket is found by extrapolation,
    then reduced by secant² (whose first step here is the minimizer of a cubic) and by
    bisection where secant² is slow. The search starts at the minimizer of the parabola
    through φ(0), φ'(0) and the value at a trial step, the quadratic step. The first
    trial step follows from the sizes of parameters, direction, value and slope
    (`trial_step.first_step`), so that neither a common unit of all parameters nor the
    unit of the objective matters. Sources: Hager and Zhang, SIAM J. Optim. 16, 2005,
    section 4; ACM Trans. Math. Softw. 32, 2006, sections 2 and 3.

    It follows any descent direction::

        optax.chain(scale_by_nlcg("hz"), optax.scale(-1.),
                    scale_by_hager_zhang_linesearch(max_slope_ratio=0.1))

    Value and gradient are measured together, at one place in the program; the trial of
    the quadratic step is a value alone. Values that are not finite shrink the bracket.
    After a failed search, one whose bracket holds nothing but rounding ends once the
    bracket is closed, but not before three points.

    Nothing raises inside ``jit``: if the direction does not descend or no lower point
    is found the update is zero and ``accepted`` is False. Updates along which the
    objective rises, for example without ``optax.scale(-1.)``, are counted as
    ``num_ascent_directions``; outside of ``jit`` there is a warning, too.

    Args:
      sufficient_decrease: δ in (0, 1/2).
      max_slope_ratio: σ in [δ, 1), the largest part of the downward slope that may
        remain. With the second form an upward slope at the end is at most
        :math:`1 - 2\delta` times the initial slope; with the first form only the value
        bounds it. Nonlinear conjugate gradients gain from small values such as 0.1;
        quasi-Newton directions do not.
      initial_step: the trial step: ``"previous"``, the step taken before, for
        directions without a natural length; ``"one"`` for those of (quasi-)Newton
        type.
      quadratic_step: whether to start with the value at the trial step and the
        minimizer of the parabola, instead of the trial step itself. ``"adaptive"``,
        for ``initial_step="one"``: only if the minimizer along the previous direction
        differed from the unit step by more than a factor of three.
      max_evaluations: values and gradients per search, at least two if it may start
        with the quadratic step.

    Returns:
      A transformation. Its ``update`` needs ``params`` and the extra arguments
      ``value``, ``grad`` (of ``value_fn`` at ``params``, as ``jax.grad`` gives it) and
      ``value_fn`` (with ``has_aux=True``, if it returns a pair of the value and
      auxiliary data); further extra arguments go to ``value_fn`` if it accepts them and
      are ignored otherwise. ``optax.value_and_grad_from_state(value_fn)`` reads the
      next value and gradient from the state, which holds the value in float32 for
      parameters of bfloat16 or float16: ``value_fn`` must then return float32, as
      ``loss(x).astype(jnp.float32)`` does (``optax.lbfgs`` needs the narrow dtype).

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if, in ``update``, ``value_fn`` is not callable or returns no real
        scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda x: jnp.sum((1 - x[:-1])**2 + 100. * (x[1:] - x[:-1]**2)**2)
      >>> tx = optax.chain(optax.scale_by_lbfgs(), optax.scale(-1.),
      ...                  scale_by_hager_zhang_linesearch(initial_step="one"))
      >>> x = jnp.array([-1.2, 1.])
      >>> state = tx.init(x)
      >>> value_and_grad = optax.value_and_grad_from_state(loss)
      >>> @jax.jit
      ... def step(x, state):
      ...     value, grad = value_and_grad(x, state=state)
      ...     updates, state = tx.update(grad, state, x, value=value, grad=grad,
      ...                                value_fn=loss)
      ...     return optax.apply_updates(x, updates), state
      >>> for _ in range(50):
      ...     x, state = step(x, state)
      >>> bool(jnp.max(jnp.abs(x - 1.)) < 1e-3)
      True
    """
    options = checked_options(
        sufficient_decrease=sufficient_decrease,
        max_slope_ratio=max_slope_ratio,
        initial_step=initial_step,
        quadratic_step=quadratic_step,
        max_evaluations=max_evaluations,
    )
    return transformation(options, _init, _update)


def _warn_of_the_sign(slope: jax.Array) -> None:
    """Warns of updates that ascend; not inside of ``jit``."""
    if is_known(slope) and _ascends(slope):
        warnings.warn(
            f"{NAME}: value_fn rises along the updates, so the step is zero. A search "
            "needs a direction of descent: put optax.scale(-1.) before it, as in "
            "optax.chain(scale_by_nlcg(), optax.scale(-1.), search)",
            stacklevel=2,
        )


def _ascends(slope: jax.Array) -> jax.Array:
    return (slope > 0) & jnp.isfinite(slope)


class _Trial(NamedTuple):
    """The best point of a running search, and the search."""

    search: SearchState
    step: jax.Array
    value: jax.Array
    slope: jax.Array
    grad: PyTree
    num_values: jax.Array
    num_gradients: jax.Array


def _init(options: Options, params: PyTree) -> ScaleByHagerZhangLinesearchState:
    del options
    acc = accumulator_dtype(params)
    return ScaleByHagerZhangLinesearchState(
        count=jnp.zeros([], jnp.int32),
        previous_step=jnp.zeros([], acc),
        unit_step_fits=jnp.zeros([], jnp.bool_),
        value=jnp.full([], jnp.inf, acc),
        grad=strong_types(jax.tree.map(jnp.zeros_like, params)),
        error=trial_step.no_error_estimate(acc),
        diagnostics=HagerZhangDiagnostics(
            step_size=jnp.zeros([], acc),
            accepted=jnp.zeros([], jnp.bool_),
            num_values=jnp.zeros([], jnp.int32),
            num_gradients=jnp.zeros([], jnp.int32),
            num_failed_searches=jnp.zeros([], jnp.int32),
            num_ascent_directions=jnp.zeros([], jnp.int32),
        ),
    )


def _update(
    options: Options,
    updates: PyTree,
    state: ScaleByHagerZhangLinesearchState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByHagerZhangLinesearchState]:
    validation.check_state(NAME, state, ScaleByHagerZhangLinesearchState)
    others = dict(extra_args)
    value, grad, value_fn = (
        others.pop(name, None) for name in ("value", "grad", "value_fn")
    )
    validation.require(NAME, "params", params, "the point to search from")
    validation.require(NAME, "value", value, "the objective at params", others)
    grad = as_arrays(
        validation.require(NAME, "grad", grad, "its gradient at params", others)
    )
    value_fn = validation.require(NAME, "value_fn", value_fn, "the objective", others)
    validation.check_scalar_loss(NAME, value)
    validation.check_same_structure("updates", updates, state.grad)
    validation.check_same_structure("grad", grad, state.grad)
    validation.check_same_structure("params", params, state.grad)
    objective = validation.returning_scalar(
        "value_fn", bind_extra_args(value_fn, others)
    )
    acc = state.previous_step.dtype
    given = options.rules
    rules = jax.tree.map(
        lambda x: x.astype(acc) if isinstance(x, jax.Array) else x, given
    )._replace(max_evaluations=given.max_evaluations)  # an integer
    start_value = jnp.asarray(value).astype(acc)
    error = trial_step.observe(state.error, start_value)
    search, resolution, usable = _start(
        options, updates, state, params, grad, start_value, error
    )
    _warn_of_the_sign(search.start_slope)
    # Otherwise what is known of the parameters, which do not move, is kept: one NaN
    # would come back from the state in every later step.
    # Not at once: the first long search in rounding often finds a smaller gradient.
    failed_before = (state.count > 0) & ~state.diagnostics.accepted
    end = while_loop(
        lambda trial: wolfe_search.is_running(trial.search),
        lambda trial: _measured(
            rules, objective, updates, params, resolution, failed_before, trial
        ),
        _Trial(
            search=search,
            step=jnp.zeros([], acc),
            value=jnp.where(usable, start_value, state.value),
            slope=search.start_slope,
            grad=select(usable, optax.tree.cast_like(grad, state.grad), state.grad),
            num_values=state.diagnostics.num_values,
            num_gradients=state.diagnostics.num_gradients,
        ),
    )
    # A direction that is not finite must not leak through a step of zero.
    scaled = jax.tree.map(
        lambda u: jnp.where(end.step > 0, u, jnp.zeros_like(u)),
        _scale(end.step, updates),
    )
    return scaled, _after(state, error, end)


def _start(
    options: Options,
    updates: PyTree,
    state: ScaleByHagerZhangLinesearchState,
    params: PyTree,
    grad: PyTree,
    start_value: jax.Array,
    error: ErrorEstimate,
) -> tuple[SearchState, jax.Array, jax.Array]:
    """The search and its resolution, and whether value and gradient are finite.

    A search along updates that do not descend has failed.
    """
    parts = map(_real_parts, (params, updates, grad))
    (slope,), (params_max, updates_max, grad_max, fineness) = products_and_maxima(
        [(updates, _ascent(grad))],
        [*parts, _fineness(params, updates)],
        dtype=start_value.dtype,
    )
    fresh = trial_step.first_step(start_value, slope, params_max, updates_max)
    later = 1.0 if options.initial_step == "one" else state.previous_step
    probe = options.quadratic_step
    search = wolfe_search.start(
        start_value,
        slope,
        jnp.where(state.previous_step > 0, later, fresh),
        trial_step.tolerance(error, start_value),
        probe=~state.unit_step_fits if probe == "adaptive" else bool(probe),
    )
    # ~(slope < 0) is also true if the slope is NaN.
    hopeless = ~(slope < 0) | ~jnp.isfinite(start_value) | ~jnp.isfinite(slope)
    stage = jnp.where(hopeless, wolfe_search.FAILED, search.stage)
    usable = jnp.isfinite(start_value) & jnp.isfinite(grad_max)
    return search._replace(stage=stage), 1 / fineness, usable


def _measured(
    rules: WolfeRules,
    objective: Callable[[PyTree], Any],
    updates: PyTree,
    params: PyTree,
    resolution: jax.Array,
    failed_before: jax.Array,
    trial: _Trial,
) -> _Trial:
    """Measures the point that the search asks for, and advances the search."""
    step = trial.search.step
    needs_gradient = wolfe_search.needs_gradient(trial.search)

    def value_alone(x: PyTree) -> tuple[jax.Array, PyTree]:
        return objective(x), jax.tree.map(jnp.zeros_like, x)

    value, grad = cond(
        needs_gradient,
        jax.value_and_grad(objective),
        value_alone,
        optax.apply_updates(params, _scale(step, updates)),
    )
    value = jnp.asarray(value).astype(trial.value.dtype)
    (slope,) = vdots([(updates, _ascent(grad))], dtype=value.dtype)
    taken = jnp.isfinite(slope) & jnp.isfinite(value) & (value < trial.value)
    taken |= wolfe_search.accepts(rules, trial.search, value, slope)
    taken &= needs_gradient
    return _Trial(
        search=_advance(rules, trial.search, value, slope, resolution, failed_before),
        step=jnp.where(taken, step, trial.step),
        value=jnp.where(taken, value, trial.value),
        slope=jnp.where(taken, slope, trial.slope),
        grad=select(taken, grad, trial.grad),
        num_values=trial.num_values + (~needs_gradient).astype(jnp.int32),
        num_gradients=trial.num_gradients + needs_gradient.astype(jnp.int32),
    )


@functools.partial(jax.jit, inline=True)
def _advance(
    rules: WolfeRules,
    search: SearchState,
    value: jax.Array,
    slope: jax.Array,
    resolution: jax.Array,
    failed_before: jax.Array,
) -> SearchState:
    # Outside of jit these two hundred scalar operations are one program, too.
    search = wolfe_search.advance(rules, search, value, slope)
    search = early_ends.failed_if_narrow(search, resolution)
    return early_ends.failed_if_idle(search, failed_before)


def _after(
    state: ScaleByHagerZhangLinesearchState, error: ErrorEstimate, end: _Trial
) -> ScaleByHagerZhangLinesearchState:
    """The state after a search."""
    accepted = end.search.stage == wolfe_search.ACCEPTED
    failed = (~accepted).astype(jnp.int32)
    # A search that could not begin says nothing about rounding.
    began = jnp.isfinite(end.search.start_value) & jnp.isfinite(end.search.start_slope)
    began &= end.search.start_slope < 0
    return ScaleByHagerZhangLinesearchState(
        count=optax.safe_increment(state.count),
        previous_step=jnp.where(end.step > 0, end.step, state.previous_step),
        unit_step_fits=trial_step.unit_step_fits(
            end.step, end.search.start_slope, end.slope
        ),
        value=end.value,
        grad=end.grad,
        error=trial_step.after_search(error, accepted | ~began),
        diagnostics=HagerZhangDiagnostics(
            step_size=end.step,
            accepted=accepted,
            num_values=end.num_values,
            num_gradients=end.num_gradients,
            num_failed_searches=state.diagnostics.num_failed_searches + failed,
            num_ascent_directions=state.diagnostics.num_ascent_directions
            + _ascends(end.search.start_slope).astype(jnp.int32),
        ),
    )


def _ascent(grad: PyTree) -> PyTree:
    # jax.grad of a complex parameter is the conjugate of the steepest ascent.
    return jax.tree.map(jnp.conj, grad)


def _fineness(params: PyTree, updates: PyTree) -> PyTree:
    """Per number, one over the step that moves it by one unit of rounding."""

    def leaf_fineness(x: jax.Array, u: jax.Array) -> jax.Array:
        size = jnp.abs(x)
        unit = size * float(jnp.finfo(size.dtype).eps)
        unit = jnp.where(u == 0, 1, unit)  # zero by zero would alarm `jax.debug_nans`
        return jnp.abs(u).astype(unit.dtype) / unit

    return jax.tree.map(leaf_fineness, _real_parts(params), _real_parts(updates))


def _real_parts(tree: PyTree) -> PyTree:
    """The tree with a pair of real arrays in place of each complex one."""
    return jax.tree.map(
        lambda x: (jnp.real(x), jnp.imag(x)) if jnp.iscomplexobj(x) else x, tree
    )


def _scale(step: jax.Array, updates: PyTree) -> PyTree:
    return jax.tree.map(lambda u: times(step, u).astype(u.dtype), updates)
