"""Møller's scaled conjugate gradients: a step from curvature instead of a search."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.curvature.refresh import if_due, is_due
from nlcg_optax.curvature.source import (
    CURVATURES,
    CurvatureKind,
    curvature_along_fn,
    value_at_fn,
)
from nlcg_optax.dtypes import PyTree, accumulator_dtype, stored_like, times
from nlcg_optax.step_size.reduction_ratio import params_after, reduction_ratio
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.inner_products import vdots
from nlcg_optax.xla.control_flow import while_loop

GOOD_RATIO, BAD_RATIO = 0.75, 0.25
SHRINK = 0.25
# Lower bound of Δ: δ grows at most twelvefold in one trial.
WORST_RATIO = -10.0


class ScaledCgStepDiagnostics(NamedTuple):
    """What `scale_by_scaled_cg_step` did, as scalars.

    Attributes:
      step_size: the α that multiplied the last update; zero if no step was good.
      damping: λ for the next step.
      reduction_ratio: Møller's Δ of the last trial; one at first.
      num_trials: evaluations of the loss so far, except those at the start of a step.
      num_curvature_skips: measurements so far whose curvature along d was not positive,
        so that its sign was flipped, or that were not finite.
      num_zero_directions: measurements so far along a zero direction.
      num_rejected: steps so far that were not taken, because none of their trials
        lowered the loss.
    """

    step_size: jax.Array
    damping: jax.Array
    reduction_ratio: jax.Array
    num_trials: jax.Array
    num_curvature_skips: jax.Array
    num_zero_directions: jax.Array
    num_rejected: jax.Array


class ScaleByScaledCgStepState(NamedTuple):
    """State of `scale_by_scaled_cg_step`.

    Attributes:
      count: number of updates.
      step_size: the last α.
      damping: λ for the next step.
      diagnostics: what was done.
    """

    count: jax.Array  # type: ignore[assignment]
    step_size: jax.Array
    damping: jax.Array
    diagnostics: ScaledCgStepDiagnostics


class _Trial(NamedTuple):
    number: jax.Array
    accepted: jax.Array
    step_size: jax.Array
    damping: jax.Array
    curve: jax.Array  # dᵀBd + λ dᵀd
    ratio: jax.Array


def scale_by_scaled_cg_step(
    curvature: CurvatureKind = "hessian",
    *,
    initial_damping: float | jax.Array = 1e-6,
    max_trials: int = 10,
    refresh_period: int | jax.Array = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the update by the step of scaled conjugate gradients.

    Along the direction d, with B the Hessian (or Gauss-Newton matrix) on this batch,

    .. math::
        \mu = -g^\top d, \qquad
        \delta = d^\top B d + \lambda\, d^\top d, \qquad
        \alpha = \frac{\mu}{\delta}, \qquad
        \Delta = \frac{2 \delta\,(f(\theta) - f(\theta + \alpha d))}{\mu^2}.

    Where :math:`\delta \le 0`, λ becomes :math:`2 (\lambda - \delta / d^\top d)` and δ
    becomes :math:`-d^\top B d`. A step with :math:`\Delta \ge 0` is taken; then λ is
    divided by 4 if :math:`\Delta \ge 3/4`. If :math:`\Delta < 1/4` it grows by
    :math:`\delta (1 - \Delta) / d^\top d`. A step with :math:`\Delta < 0` is tried
    again with the larger λ, at the cost of one value of the loss per trial, up to
    ``max_trials`` times; if none is good the update is zero. Source: Møller (1993), "A
    scaled conjugate gradient algorithm for fast supervised learning". Here the exact
    curvature replaces his difference of gradients, Δ is kept above -10, and a reduction
    below the rounding of the loss counts as good.

    Place it after ``scale_by_nlcg("pr+")`` with a ``restart_period`` of the number of
    dimensions, and before ``optax.scale_by_learning_rate(1.)``. Møller's rule, in the
    form :math:`\beta = (g^\top g - g^\top g_{prev}) / \mu_{prev}`, is "ls". Use full or
    large batches, because decisions are made on differences of the loss.

    Args:
      curvature: ``"hessian"``, for which ``update`` needs ``value_fn`` (or ``hvp_fn``,
        ``grad``, ``value`` and ``value_fn``), or ``"gauss_newton"``, for which it
        needs ``outputs_fn`` and ``output_loss_fn``, see `scale_by_curvature_step`.
      initial_damping: λ at first, in units of the curvature.
      max_trials: largest number of trials per step.
      refresh_period: steps between measurements and trials; in between the last step
        size is used unmodified, at no cost.

    Returns:
      A transformation that keeps scalars only.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if a function cannot be called or a loss is not a real scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from nlcg_optax import scale_by_nlcg
      >>> loss = lambda x: jnp.sum(jnp.cosh(x - jnp.array([1., -2.])))
      >>> tx = optax.chain(scale_by_nlcg("ls", restart_period=2),
      ...                  scale_by_scaled_cg_step(),
      ...                  optax.scale_by_learning_rate(1.))
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for _ in range(8):
      ...     updates, state = tx.update(
      ...         jax.grad(loss)(params), state, params, value_fn=loss)
      ...     params = optax.apply_updates(params, updates)
      >>> jnp.round(params, 2)
      Array([ 1., -2.], dtype=float32)
    """
    validation.check_choice("curvature", curvature, CURVATURES)
    validation.check_non_negative("initial_damping", initial_damping)
    validation.check_positive_int("max_trials", max_trials)
    validation.check_positive_int("refresh_period", refresh_period)
    options = _Options(curvature, initial_damping, max_trials, refresh_period)
    return transformation(options, _init, _update)


class _Options(NamedTuple):
    """The arguments of `scale_by_scaled_cg_step`."""

    curvature: CurvatureKind
    initial_damping: Any
    max_trials: int
    refresh_period: Any


def _init(options: _Options, params: PyTree) -> ScaleByScaledCgStepState:
    acc = accumulator_dtype(params)
    return ScaleByScaledCgStepState(
        count=jnp.zeros([], jnp.int32),
        step_size=jnp.zeros([], acc),
        damping=jnp.array(options.initial_damping).astype(acc),
        diagnostics=ScaledCgStepDiagnostics(
            step_size=jnp.zeros([], acc),
            damping=jnp.array(options.initial_damping).astype(acc),
            reduction_ratio=jnp.ones([], acc),
            num_trials=jnp.zeros([], jnp.int32),
            num_curvature_skips=jnp.zeros([], jnp.int32),
            num_zero_directions=jnp.zeros([], jnp.int32),
            num_rejected=jnp.zeros([], jnp.int32),
        ),
    )


def _update(
    options: _Options,
    updates: PyTree,
    state: ScaleByScaledCgStepState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByScaledCgStepState]:
    name = "scale_by_scaled_cg_step"
    validation.check_state(name, state, ScaleByScaledCgStepState)
    last = state.diagnostics._replace(step_size=state.step_size, damping=state.damping)
    along = curvature_along_fn(name, options.curvature, params, extra_args)
    value_at = value_at_fn(name, options.curvature, extra_args)
    validation.check_same_structure("updates", updates, params)
    acc = state.damping.dtype

    def measured() -> ScaledCgStepDiagnostics:
        found = along([updates])
        value, mu = found.value.astype(acc), found.slopes[0].astype(acc)
        rayleigh = found.matrix[0, 0].astype(acc)
        (norm,) = vdots([(updates, updates)], dtype=acc)

        def value_after(step_size: jax.Array) -> jax.Array:
            step = jax.tree.map(lambda u: times(step_size, u), updates)
            return value_at(params_after(params, step)).astype(acc)

        return _next(last, value, mu, rayleigh, norm, value_after, options.max_trials)

    due = is_due(state.count, options.refresh_period, extra_args)
    diagnostics = if_due(due, measured, lambda: last)
    step_size = diagnostics.step_size
    scaled = jax.tree.map(lambda u: times(step_size, u), updates)
    scaled = jax.tree.map(lambda x: jnp.where(step_size == 0, 0, x), scaled)
    return stored_like(scaled, updates), ScaleByScaledCgStepState(
        count=optax.safe_increment(state.count),
        step_size=step_size,
        damping=diagnostics.damping,
        diagnostics=diagnostics,
    )


def _next(
    last: ScaledCgStepDiagnostics,
    value: jax.Array,
    mu: jax.Array,
    rayleigh: jax.Array,
    norm: jax.Array,
    value_after: Any,
    max_trials: int,
) -> ScaledCgStepDiagnostics:
    """Finds a step along a direction of slope ``-mu`` and curvature ``rayleigh``."""
    zero = norm == 0
    finite = jnp.isfinite(value) & jnp.isfinite(mu) & jnp.isfinite(rayleigh)
    usable = finite & jnp.isfinite(norm) & ~zero
    safe_norm = jnp.where(usable, norm, 1)
    curve = rayleigh + last.damping * norm
    turned = curve <= 0
    damping = jnp.where(
        usable & turned, 2 * (last.damping - curve / safe_norm), last.damping
    )
    curve = jnp.where(turned, rayleigh + damping * norm, curve)
    usable &= curve > 0

    def another(trial: _Trial) -> jax.Array:
        return ~trial.accepted & (trial.number < max_trials)

    def attempt(trial: _Trial) -> _Trial:
        step_size = mu / trial.curve
        predicted = mu * step_size / 2
        found = reduction_ratio(value, value_after(step_size), predicted)
        ratio = jnp.where(found.meaningful, found.ratio, 1)
        grown = trial.damping + trial.curve * (1 - jnp.maximum(ratio, WORST_RATIO)) / (
            safe_norm
        )
        new_damping = jnp.where(
            ratio < BAD_RATIO,
            grown,
            jnp.where(ratio >= GOOD_RATIO, SHRINK * trial.damping, trial.damping),
        )
        return _Trial(
            number=trial.number + 1,
            accepted=ratio >= 0,
            step_size=step_size,
            damping=new_damping,
            curve=trial.curve + (new_damping - trial.damping) * safe_norm,
            ratio=ratio,
        )

    end = while_loop(
        another,
        attempt,
        _Trial(
            number=jnp.zeros([], jnp.int32),
            accepted=~usable,  # nothing to try
            step_size=jnp.zeros_like(mu),
            damping=damping,
            curve=curve,
            ratio=last.reduction_ratio,
        ),
    )
    rejected = ~end.accepted
    return ScaledCgStepDiagnostics(
        step_size=jnp.where(rejected, 0, end.step_size),
        damping=end.damping,
        reduction_ratio=end.ratio,
        num_trials=last.num_trials + end.number,
        num_curvature_skips=last.num_curvature_skips
        + ((turned & ~zero) | ~finite).astype(jnp.int32),
        num_zero_directions=last.num_zero_directions + zero.astype(jnp.int32),
        num_rejected=last.num_rejected + rejected.astype(jnp.int32),
    )
