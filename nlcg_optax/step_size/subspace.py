"""The best step in the plane of the new direction and the last step."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.curvature.along import DirectionalCurvature
from nlcg_optax.curvature.refresh import if_due, is_due
from nlcg_optax.curvature.source import (
    CURVATURES,
    CurvatureKind,
    curvature_along_fn,
    value_at_fn,
)
from nlcg_optax.dtypes import (
    PyTree,
    accumulator_dtype,
    compute_dtype,
    select,
    stored_like,
    times,
    zeros_like,
)
from nlcg_optax.step_size.plane import Plane, adapted, best_in_plane
from nlcg_optax.step_size.reduction_ratio import params_after, reduction_ratio
from nlcg_optax.transformation import transformation
from nlcg_optax.xla.control_flow import cond


class SubspaceStepDiagnostics(NamedTuple):
    """What `scale_by_subspace_step` did, as scalars.

    Attributes:
      step_size: the coefficient of the incoming update.
      momentum: the coefficient of the last step.
      damping: the dimensionless damping for the next step.
      reduction_ratio: achieved over predicted reduction of the loss at the last
        measurement; one at first.
      num_curvature_skips: steps so far at which the curvature in the plane was not
        positive, or something was not finite, and a fallback was taken.
      num_zero_directions: steps so far whose incoming update had neither slope nor
        curvature.
      num_rejected: steps so far that were not taken because the loss would have
        risen.
    """

    step_size: jax.Array
    momentum: jax.Array
    damping: jax.Array
    reduction_ratio: jax.Array
    num_curvature_skips: jax.Array
    num_zero_directions: jax.Array
    num_rejected: jax.Array


class ScaleBySubspaceStepState(NamedTuple):
    """State of `scale_by_subspace_step`.

    Attributes:
      count: number of updates.
      previous_updates: the last update that was not zero.
      step_size: the last coefficient a.
      momentum: the last coefficient b.
      damping: λ for the next step.
      diagnostics: what was done.
    """

    count: jax.Array  # type: ignore[assignment]
    previous_updates: PyTree
    step_size: jax.Array
    momentum: jax.Array
    damping: jax.Array
    diagnostics: SubspaceStepDiagnostics


def scale_by_subspace_step(
    curvature: CurvatureKind = "hessian",
    *,
    initial_damping: float | jax.Array = 1.0,
    adapt_damping: bool = True,
    refresh_period: int | jax.Array = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the locally best step in the plane of the update and the last step.

    With the incoming update u (P g after ``scale_by_nlcg(0.)``, or -d), the last step
    s, and B the Hessian or the Gauss-Newton matrix on this batch, the outgoing update
    is :math:`a u + b s` with

    .. math:: (M + \lambda\, \mathrm{diag} M) \binom{a}{b}
        = \binom{g^\top u}{g^\top s}, \qquad
        M = \begin{pmatrix} u^\top B u & u^\top B s \\ \cdot & s^\top B s
        \end{pmatrix}.

    So there is neither a learning rate nor a formula for β: on a quadratic without
    damping this *is* the method of conjugate gradients, and with Gauss-Newton and
    K-FAC for P it is the step of Martens and Grosse (2015, section 7). The damping λ
    is dimensionless (Marquardt, 1963) and follows the reduction ratio

    .. math:: \rho = \frac{f(\theta) - f(\theta - a u - b s)}{
        a\, g^\top u + b\, g^\top s - \tfrac12 (a, b) M (a, b)^\top}

    on the same batch: above 3/4, λ is multiplied by 2/3; below 1/4, by 3/2. A step
    with :math:`\rho < 0` is not taken (a zero update, counted). The ratio assumes that
    the outgoing step is taken unmodified: let ``optax.scale_by_learning_rate(1.)``
    follow, or a number near 1.

    Fallbacks, which are counted: if M is not positive definite, or u and s are almost
    parallel in its metric, the step is along u alone with
    :math:`a = g^\top u / ((1 + \lambda)\, u^\top B u)`. If :math:`u^\top B u` is not
    positive, the last a is used; at first, the absolute value of this a. If something
    that is measured is not finite, or u is zero then, the update is zero. Between two
    measurements (``refresh_period``) an entry that is not finite is zero, and the last
    a and b apply to whatever u is, also to zero.

    Args:
      curvature: ``"hessian"``, for which ``update`` needs ``value_fn`` (or ``hvp_fn``
        and ``grad``, with ``value`` and ``value_fn`` to adapt the damping), or
        ``"gauss_newton"``, for which it needs ``outputs_fn`` and ``output_loss_fn``,
        see `scale_by_curvature_step`.
      initial_damping: λ at first.
      adapt_damping: whether λ follows the reduction ratio, at the cost of one
        evaluation of the loss (``value_fn``, or the outputs) per measurement, and
        whether steps are refused. Otherwise λ stays.
      refresh_period: steps between choices of a and b; in between they are
        reused (b at most 1 in size), at the cost of memory traffic alone.

    Returns:
      A transformation with one copy of the parameters in its state. Its ``update``
      takes ``params`` and the extra arguments above.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if a function cannot be called or a loss is not a real scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from nlcg_optax import scale_by_nlcg
      >>> model = lambda x: jnp.array([1., 2., 3.]) * x
      >>> output_loss = lambda z: 0.5 * jnp.sum(z**2)
      >>> tx = optax.chain(
      ...     scale_by_nlcg(0.),  # z = P g; a and b take the place of beta
      ...     scale_by_subspace_step("gauss_newton", initial_damping=0.),
      ...     optax.scale_by_learning_rate(1.))
      >>> params = jnp.array([1., 1., 1.])
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     grads = jax.grad(lambda x: output_loss(model(x)))(params)
      ...     updates, state = tx.update(grads, state, params, outputs_fn=model,
      ...                                output_loss_fn=output_loss)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(output_loss(model(params)) < 1e-8)
      True
    """
    validation.check_choice("curvature", curvature, CURVATURES)
    validation.check_non_negative("initial_damping", initial_damping)
    validation.check_static(adapt_damping=adapt_damping)
    validation.check_bool("adapt_damping", adapt_damping)
    validation.check_positive_int("refresh_period", refresh_period)

    options = _Options(curvature, initial_damping, adapt_damping, refresh_period)

    return transformation(options, _init, _update)


class _Options(NamedTuple):
    """The arguments of `scale_by_subspace_step`."""

    curvature: CurvatureKind
    initial_damping: Any
    adapt_damping: bool
    refresh_period: Any


def _init(options: _Options, params: PyTree) -> ScaleBySubspaceStepState:
    acc = accumulator_dtype(params)
    return ScaleBySubspaceStepState(
        count=jnp.zeros([], jnp.int32),
        previous_updates=zeros_like(params),
        step_size=jnp.zeros([], acc),
        momentum=jnp.zeros([], acc),
        damping=jnp.array(options.initial_damping).astype(acc),
        diagnostics=SubspaceStepDiagnostics(
            step_size=jnp.zeros([], acc),
            momentum=jnp.zeros([], acc),
            damping=jnp.array(options.initial_damping).astype(acc),
            reduction_ratio=jnp.ones([], acc),
            num_curvature_skips=jnp.zeros([], jnp.int32),
            num_zero_directions=jnp.zeros([], jnp.int32),
            num_rejected=jnp.zeros([], jnp.int32),
        ),
    )


def _update(
    options: _Options,
    updates: PyTree,
    state: ScaleBySubspaceStepState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleBySubspaceStepState]:
    name, kind = "scale_by_subspace_step", options.curvature
    validation.check_state(name, state, ScaleBySubspaceStepState)
    along = curvature_along_fn(name, kind, params, extra_args)
    value_at = None
    if options.adapt_damping:
        value_at = value_at_fn(name, kind, extra_args)
    validation.check_same_structure("updates", updates, state.previous_updates)
    due = is_due(state.count, options.refresh_period, extra_args)
    found = _measured(along, due, updates, state, needs_value=value_at is not None)
    plane = best_in_plane(found, state.damping, state.step_size)
    step = _combined(
        jnp.where(due, plane.step_size, state.step_size),
        jnp.where(due, plane.momentum, jnp.clip(state.momentum, -1, 1)),
        updates,
        state.previous_updates,
    )
    moves = due & plane.moves
    trial = _Trial(
        state.damping, state.diagnostics.reduction_ratio, jnp.zeros([], jnp.bool_)
    )
    if value_at is not None:
        trial = _tried(value_at, params, step, found, plane, moves, trial)
    taken = ~trial.rejected & ~(due & ~plane.moves)
    new_updates = jax.tree.map(lambda x: jnp.where(taken, x, 0), step)
    new_updates = stored_like(new_updates, updates)
    last = state.diagnostics
    step_size = jnp.where(moves, plane.step_size, state.step_size)
    momentum = jnp.where(moves, plane.momentum, state.momentum)
    return new_updates, ScaleBySubspaceStepState(
        count=optax.safe_increment(state.count),
        previous_updates=select(taken, new_updates, state.previous_updates),
        step_size=step_size,
        momentum=momentum,
        damping=trial.damping,
        diagnostics=SubspaceStepDiagnostics(
            step_size=step_size,
            momentum=momentum,
            damping=trial.damping,
            reduction_ratio=trial.ratio,
            num_curvature_skips=last.num_curvature_skips
            + (due & plane.fell_back).astype(jnp.int32),
            num_zero_directions=last.num_zero_directions
            + (due & plane.zero).astype(jnp.int32),
            num_rejected=last.num_rejected + trial.rejected.astype(jnp.int32),
        ),
    )


def _measured(
    along: Callable[[Sequence[PyTree]], DirectionalCurvature],
    due: bool | jax.Array,
    updates: PyTree,
    state: ScaleBySubspaceStepState,
    *,
    needs_value: bool,
) -> DirectionalCurvature:
    """Slopes and curvature of the plane; a placeholder if no measurement is due."""
    acc = state.damping.dtype

    def measure() -> DirectionalCurvature:
        found = along([updates, state.previous_updates])
        if not needs_value:
            found = found._replace(value=jnp.zeros([], acc))
        return jax.tree.map(lambda x: x.astype(acc), found)

    def placeholder() -> DirectionalCurvature:
        one = jnp.ones([], acc)
        return DirectionalCurvature(one, jnp.ones([2], acc), jnp.eye(2, dtype=acc))

    return if_due(due, measure, placeholder)


def _combined(
    step_size: jax.Array, momentum: jax.Array, updates: PyTree, previous: PyTree
) -> PyTree:
    """``a u + b s``, zero where that is not finite."""

    def combined(u: jax.Array, s: jax.Array) -> jax.Array:
        wide = times(step_size, u) + times(momentum, s).astype(compute_dtype(u.dtype))
        return jnp.where(jnp.isfinite(wide), wide, 0)

    return jax.tree.map(combined, updates, previous)


class _Trial(NamedTuple):
    """What the loss after a step says about the model."""

    damping: jax.Array
    ratio: jax.Array
    rejected: jax.Array


def _tried(
    value_at: Callable[[PyTree], jax.Array],
    params: PyTree,
    step: PyTree,
    found: DirectionalCurvature,
    plane: Plane,
    moves: jax.Array,
    last: _Trial,
) -> _Trial:
    """Measures the loss after the step, adapts the damping and judges the step."""

    def value_after() -> jax.Array:
        return value_at(params_after(params, step)).astype(found.value.dtype)

    value = cond(moves, value_after, lambda: found.value)
    achieved = reduction_ratio(found.value, value, plane.predicted)
    judged = moves & achieved.meaningful
    return _Trial(
        damping=jnp.where(judged, adapted(last.damping, achieved), last.damping),
        ratio=jnp.where(judged, achieved.ratio, last.ratio),
        rejected=judged & (achieved.ratio < 0),
    )
