"""The Hager-Zhang approximate-Wolfe line search as an Optax transformation."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, accumulator_dtype
from nlcg_optax.linesearch import trial_step, wolfe_search
from nlcg_optax.linesearch.trial_step import ErrorEstimate
from nlcg_optax.linesearch.wolfe_search import SearchState, WolfeRules
from nlcg_optax.trees.inner_products import products_and_maxima, vdots
from nlcg_optax.wrappers.extra_args import bind_extra_args

INITIAL_STEPS = ("previous", "one")


class HagerZhangDiagnostics(NamedTuple):
    """What `scale_by_hager_zhang_linesearch` did, as scalars.

    Attributes:
      step_size: the step that was taken; zero if there was none to take.
      accepted: whether it satisfies the Wolfe or the approximate Wolfe conditions.
      num_values: values measured without a gradient so far.
      num_gradients: values measured together with a gradient so far.
      num_failed_searches: searches so far that ended without an accepted step.
    """

    step_size: jax.Array
    accepted: jax.Array
    num_values: jax.Array
    num_gradients: jax.Array
    num_failed_searches: jax.Array


class ScaleByHagerZhangLinesearchState(NamedTuple):
    """State of `scale_by_hager_zhang_linesearch`.

    Attributes:
      count: number of updates.
      previous_step: the last step that was taken, zero before the first.
      unit_step_fits: whether the last search had its minimiser near the step one.
      value: the objective at the new parameters, for `optax.value_and_grad_from_state`.
      grad: its gradient there.
      error: running estimate of the error of the objective.
      diagnostics: what the last update did.
    """

    count: jax.Array  # type: ignore[assignment]
    previous_step: jax.Array
    unit_step_fits: jax.Array
    value: jax.Array
    grad: PyTree
    error: ErrorEstimate
    diagnostics: HagerZhangDiagnostics


class _Trial(NamedTuple):
    """The best point of a running search, and the search."""

    search: SearchState
    step: jax.Array
    value: jax.Array
    slope: jax.Array
    grad: PyTree
    num_values: jax.Array
    num_gradients: jax.Array


def scale_by_hager_zhang_linesearch(
    *,
    sufficient_decrease: float = 0.1,
    curvature: float = 0.9,
    initial_step: Literal["previous", "one"] = "previous",
    step_growth: float = 1.0,
    first_step: float = 1.0,
    quadratic_step: bool | Literal["adaptive"] = True,
    max_evaluations: int = 50,
    relative_error: float = 1e-6,
    max_relative_error: float = 1e-5,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales a descent direction by the Hager-Zhang line search.

    Along :math:`\varphi(t) = f(x + t d)` it finds a step with either the Wolfe or the
    approximate Wolfe conditions,

    .. math::
        \varphi(t) \le \varphi(0) + \delta t \varphi'(0), \quad
        \varphi'(t) \ge \sigma \varphi'(0) \qquad\text{or}\\
        (2\delta - 1) \varphi'(0) \ge \varphi'(t) \ge \sigma \varphi'(0), \quad
        \varphi(t) \le \varphi(0) + \epsilon_k.

    The second form is what is left of the first on a parabola; it can be decided
    where differences of φ are round-off. A bracket is found by extrapolation, then
    reduced by secant² (its first step here is the minimiser of a cubic) and by
    bisection where that is slow. The search starts at the minimiser of the parabola
    through φ(0), φ'(0) and the value at a trial step, the quadratic step. Sources:
    Hager and Zhang, SIAM J. Optim. 16, 2005, section 4; ACM Trans. Math. Softw. 32,
    2006, sections 2 and 3.

    Put it behind any descent direction::

        optax.chain(scale_by_nlcg("hz", beta_min=-jnp.inf, beta_max=jnp.inf),
                    optax.scale(-1.), scale_by_hager_zhang_linesearch())
        optax.chain(optax.scale_by_lbfgs(), optax.scale(-1.),
                    scale_by_hager_zhang_linesearch(initial_step="one"))

    Value and gradient are measured together, at one place in the program; the trial of
    the quadratic step is a value alone. Values that are not finite shrink the
    bracket. Nothing ever raises inside ``jit``: where the direction does not descend
    or no lower point is found the update is zero and ``accepted`` is False.

    Args:
      sufficient_decrease: δ in (0, 1/2).
      curvature: σ in [δ, 1). Nonlinear conjugate gradients gain from small values
        such as .1, quasi-Newton directions do not.
      initial_step: the trial step: ``"previous"``, the step before times
        ``step_growth``, for directions without a natural length; ``"one"`` for those
        of (quasi-)Newton type.
      step_growth: see ``initial_step``.
      first_step: ψ0; the trial of the very first search moves the largest parameter
        by this fraction of itself, but goes at most to the minimiser of a parabola
        whose minimum is zero.
      quadratic_step: whether to begin with the value at the trial step and the
        minimiser of the parabola, instead of the trial step itself. ``"adaptive"``,
        for ``initial_step="one"``: only if the minimiser along the direction before
        was off the unit step by more than a factor of three.
      max_evaluations: of values and gradients, a search.
      relative_error: ε_k is this times an average of \|f\|, but not below ten units of
        rounding; it grows tenfold with each failed search, 1e4-fold at most.
      max_relative_error: cap of ε_k, before that growth, relative to \|f\|.

    Returns:
      A transformation. Its ``update`` needs ``params`` and the extra arguments
      ``value``, ``grad`` (of ``value_fn`` at ``params``, as ``jax.grad`` gives it) and
      ``value_fn``; further extra arguments go to ``value_fn`` if it accepts them and
      are ignored otherwise. ``optax.value_and_grad_from_state(value_fn)`` reads the
      next value and gradient from the state.

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
    _check_conditions(sufficient_decrease, curvature)
    validation.check_choice("initial_step", initial_step, INITIAL_STEPS)
    _check_quadratic_step(quadratic_step, initial_step)
    validation.check_positive("step_growth", step_growth)
    validation.check_positive("first_step", first_step)
    validation.check_positive_int("max_evaluations", max_evaluations)
    validation.check_positive("relative_error", relative_error)
    validation.check_positive("max_relative_error", max_relative_error)
    rules = WolfeRules(
        sufficient_decrease=sufficient_decrease,
        curvature=curvature,
        max_evaluations=max_evaluations,
    )

    def init_fn(params: PyTree) -> ScaleByHagerZhangLinesearchState:
        acc = accumulator_dtype(params)
        return ScaleByHagerZhangLinesearchState(
            count=jnp.zeros([], jnp.int32),
            previous_step=jnp.zeros([], acc),
            unit_step_fits=jnp.zeros([], jnp.bool_),
            value=jnp.full([], jnp.inf, acc),
            grad=jax.tree.map(jnp.zeros_like, params),
            error=trial_step.no_error_estimate(acc),
            diagnostics=HagerZhangDiagnostics(
                step_size=jnp.zeros([], acc),
                accepted=jnp.zeros([], jnp.bool_),
                num_values=jnp.zeros([], jnp.int32),
                num_gradients=jnp.zeros([], jnp.int32),
                num_failed_searches=jnp.zeros([], jnp.int32),
            ),
        )

    def update_fn(
        updates: PyTree,
        state: ScaleByHagerZhangLinesearchState,
        params: PyTree | None = None,
        *,
        value: Any = None,
        grad: PyTree | None = None,
        value_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByHagerZhangLinesearchState]:
        name = "scale_by_hager_zhang_linesearch"
        validation.require(name, "params", params, "the point to search from")
        validation.require(name, "value", value, "the objective at params")
        validation.require(name, "grad", grad, "its gradient at params")
        value_fn = validation.require(name, "value_fn", value_fn, "the objective")
        validation.check_scalar_loss(name, value)
        validation.check_same_structure("updates", updates, state.grad)
        validation.check_same_structure("grad", grad, state.grad)
        objective = bind_extra_args(value_fn, extra_args)
        acc = state.previous_step.dtype

        def measure(x: PyTree, needs_gradient: jax.Array) -> tuple[jax.Array, PyTree]:
            def value_alone(x_: PyTree) -> tuple[jax.Array, PyTree]:
                return objective(x_), jax.tree.map(jnp.zeros_like, x_)

            return jax.lax.cond(
                needs_gradient, jax.value_and_grad(objective), value_alone, x
            )

        def ascent(g: PyTree) -> PyTree:
            # jax.grad of a complex parameter is the conjugate of the steepest ascent.
            return jax.tree.map(jnp.conj, g)

        start_value = jnp.asarray(value).astype(acc)
        (start_slope,), (params_max, updates_max) = products_and_maxima(
            [(updates, ascent(grad))], [params, updates], dtype=acc
        )
        error = trial_step.observe(state.error, start_value)
        fresh = trial_step.first_step(
            start_value,
            start_slope,
            params_max,
            updates_max,
            fraction=first_step,
        )
        later = 1.0 if initial_step == "one" else step_growth * state.previous_step
        search = wolfe_search.start(
            start_value,
            start_slope,
            jnp.where(state.previous_step > 0, later, fresh),
            trial_step.tolerance(
                error,
                start_value,
                relative_error=relative_error,
                max_relative_error=max_relative_error,
            ),
            probe=~state.unit_step_fits
            if quadratic_step == "adaptive"
            else quadratic_step,
        )
        # Not (slope < 0) is true for a slope that is not a number, too.
        hopeless = ~(start_slope < 0) | ~jnp.isfinite(start_value)
        hopeless |= ~jnp.isfinite(start_slope)
        search = search._replace(
            stage=jnp.where(hopeless, wolfe_search.FAILED, search.stage)
        )

        def body(trial: _Trial) -> _Trial:
            needs_gradient = wolfe_search.needs_gradient(trial.search)
            x = optax.apply_updates(params, _scale(trial.search.step, updates))
            trial_value, trial_grad = measure(x, needs_gradient)
            trial_value = jnp.asarray(trial_value).astype(acc)
            slope = vdots([(updates, ascent(trial_grad))], dtype=acc)[0]
            step = trial.search.step
            search = wolfe_search.advance(rules, trial.search, trial_value, slope)
            taken = jnp.isfinite(slope) & (trial_value < trial.value)
            taken |= wolfe_search.accepts(rules, trial.search, trial_value, slope)
            taken &= needs_gradient
            return _Trial(
                search=search,
                step=jnp.where(taken, step, trial.step),
                value=jnp.where(taken, trial_value, trial.value),
                slope=jnp.where(taken, slope, trial.slope),
                grad=jax.tree.map(
                    lambda new, old: jnp.where(taken, new.astype(old.dtype), old),
                    trial_grad,
                    trial.grad,
                ),
                num_values=trial.num_values + (~needs_gradient).astype(jnp.int32),
                num_gradients=trial.num_gradients + needs_gradient.astype(jnp.int32),
            )

        end = jax.lax.while_loop(
            lambda trial: wolfe_search.is_running(trial.search),
            body,
            _Trial(
                search=search,
                step=jnp.zeros([], acc),
                value=start_value,
                slope=start_slope,
                grad=optax.tree.cast_like(grad, state.grad),
                num_values=state.diagnostics.num_values,
                num_gradients=state.diagnostics.num_gradients,
            ),
        )
        accepted = end.search.stage == wolfe_search.ACCEPTED
        new_state = ScaleByHagerZhangLinesearchState(
            count=optax.safe_increment(state.count),
            previous_step=jnp.where(end.step > 0, end.step, state.previous_step),
            unit_step_fits=trial_step.unit_step_fits(end.step, start_slope, end.slope),
            value=end.value,
            grad=end.grad,
            error=trial_step.after_search(error, accepted),
            diagnostics=HagerZhangDiagnostics(
                step_size=end.step,
                accepted=accepted,
                num_values=end.num_values,
                num_gradients=end.num_gradients,
                num_failed_searches=state.diagnostics.num_failed_searches
                + (~accepted).astype(jnp.int32),
            ),
        )
        # A direction that is not finite must not leak through a step of zero.
        scaled = jax.tree.map(
            lambda u: jnp.where(end.step > 0, u, jnp.zeros_like(u)),
            _scale(end.step, updates),
        )
        return scaled, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_conditions(sufficient_decrease: Any, curvature: Any) -> None:
    """Raises ValueError unless 0 < δ < 1/2 and δ <= σ < 1."""
    if not 0 < sufficient_decrease < 0.5:
        raise ValueError(
            f"sufficient_decrease={sufficient_decrease!r} is not in (0, 1/2)"
        )
    if not sufficient_decrease <= curvature < 1:
        raise ValueError(
            f"curvature={curvature!r} is not in [sufficient_decrease, 1) = "
            f"[{sufficient_decrease!r}, 1)"
        )


def _check_quadratic_step(quadratic_step: Any, initial_step: str) -> None:
    """Raises ValueError unless it is a boolean, or adaptive from the step one."""
    if quadratic_step != "adaptive" and not isinstance(quadratic_step, bool):
        raise ValueError(
            f"quadratic_step={quadratic_step!r} must be True, False or 'adaptive'"
        )
    if quadratic_step == "adaptive" and initial_step != "one":
        raise ValueError(
            "quadratic_step='adaptive' compares with the step one and needs "
            f"initial_step='one'; got {initial_step!r}"
        )


def _scale(step: jax.Array, updates: PyTree) -> PyTree:
    return jax.tree.map(lambda u: step.astype(u.real.dtype) * u, updates)
