"""The curvature step: learning rates in units of the exact minimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.curvature.refresh import if_due, is_due
from nlcg_optax.curvature.source import CURVATURES, CurvatureKind, curvature_along_fn
from nlcg_optax.dtypes import PyTree, accumulator_dtype, stored_like, times
from nlcg_optax.transformation import transformation

MAX_RATIO = 10.0  # caps minimizer over average, and step over minimizer


class CurvatureStepDiagnostics(NamedTuple):
    """What `scale_by_curvature_step` did, as scalars.

    Attributes:
      step_size: the average that multiplied the last update.
      minimizer: the last exact minimizer along d that was measured.
      num_curvature_skips: measurements so far that were refused: a curvature that is
        not positive, no descent, or something not finite.
      num_zero_directions: measurements so far along a direction without slope or
        curvature, such as the zero direction; they are refused as well.
    """

    step_size: jax.Array
    minimizer: jax.Array
    num_curvature_skips: jax.Array
    num_zero_directions: jax.Array


class ScaleByCurvatureStepState(NamedTuple):
    """State of `scale_by_curvature_step`.

    Attributes:
      count: number of updates.
      num_measured: minimizers taken into the average.
      minimizer_average: their exponential average, not corrected for its start.
      step_size: factor of the last update.
      diagnostics: what was done.
    """

    count: jax.Array  # type: ignore[assignment]
    num_measured: jax.Array
    minimizer_average: jax.Array
    step_size: jax.Array
    diagnostics: CurvatureStepDiagnostics


def scale_by_curvature_step(
    curvature: CurvatureKind = "hessian",
    *,
    decay: float | jax.Array = 0.9,
    refresh_period: int | jax.Array = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies updates by the averaged minimizer of the loss along them.

    Along a direction d the quadratic model of the loss is least at
    :math:`-g^\top d / d^\top B d`, with B the Hessian or the Gauss-Newton matrix on
    this very batch. The incoming update -d is replaced by

    .. math:: -\alpha_t d_t, \qquad
        \alpha_t = \mathrm{EMA}\left(\frac{-g^\top d}{d^\top B d}\right),

    with the exponential average corrected for its start at zero. The learning rate that
    follows in the chain is therefore dimensionless: 1 is the (averaged) exact minimizer
    along d; from 2 on, the model no longer descends.

    Slope and curvature come from one forward derivative (`hessian_along`,
    `gauss_newton_along`) of the loss that is passed, so they agree with each other even
    if the gradient was clipped or decayed before.

    Two caps limit the harm of one odd measurement: a minimizer enters the average as at
    most ten times the average, and the step after a measurement is at most ten times
    the minimizer just measured.

    A measurement is refused, and counted, if the curvature is not positive, d does not
    descend or something is not finite: the average stays. Until there is an average,
    :math:`|g^\top d / d^\top B d|` of the refused measurement is used if it is finite
    (Møller, 1993, flips the sign of negative curvature in the same way), otherwise the
    last step size, which is zero at first.

    Args:
      curvature: ``"hessian"``, for which ``update`` needs ``value_fn`` (or ``hvp_fn``
        and ``grad``), or ``"gauss_newton"``, for which it needs ``outputs_fn`` and
        ``output_loss_fn``. Gauss-Newton is cheaper and, for squares and
        cross-entropy, never negative.
      decay: decay of the average, in [0, 1); zero for none.
      refresh_period: steps between measurements; in between the average is used
        unmodified, at no cost.

    Returns:
      A transformation. Its ``update`` takes ``params`` and, as extra arguments,

      - ``value_fn(params, ...)``, the loss of this batch;
      - ``outputs_fn(params, ...)``, the outputs of the model for this batch, and
        ``output_loss_fn(outputs, ...)``, the loss of outputs;
      - ``hvp_fn(params, vector, ...)``, a custom curvature product, with ``grad``, the
        gradient as ``jax.grad`` gives it.

      Keyword arguments of ``update`` are forwarded to each function with a parameter
      of that name (``x=batch["image"]``).

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if a function cannot be called or a loss is not a real scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from nlcg_optax import scale_by_nlcg
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1., 10.]) * x**2)
      >>> tx = optax.chain(scale_by_nlcg("fr"), scale_by_curvature_step(decay=0.),
      ...                  optax.scale_by_learning_rate(1.))
      >>> params = jnp.array([1., 1.])
      >>> state = tx.init(params)
      >>> for _ in range(2):  # conjugate gradients solve a quadratic in 2 dimensions
      ...     updates, state = tx.update(
      ...         jax.grad(loss)(params), state, params, value_fn=loss)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(loss(params) < 1e-10)
      True
    """
    validation.check_choice("curvature", curvature, CURVATURES)
    validation.check_decay("decay", decay)
    validation.check_positive_int("refresh_period", refresh_period)
    options = _Options(curvature, decay, refresh_period)
    return transformation(options, _init, _update)


class _Options(NamedTuple):
    """The arguments of `scale_by_curvature_step`."""

    curvature: CurvatureKind
    decay: Any
    refresh_period: Any


def _init(options: _Options, params: PyTree) -> ScaleByCurvatureStepState:
    del options
    acc = accumulator_dtype(params)
    return ScaleByCurvatureStepState(
        count=jnp.zeros([], jnp.int32),
        num_measured=jnp.zeros([], jnp.int32),
        minimizer_average=jnp.zeros([], acc),
        step_size=jnp.zeros([], acc),
        diagnostics=CurvatureStepDiagnostics(
            step_size=jnp.zeros([], acc),
            minimizer=jnp.zeros([], acc),
            num_curvature_skips=jnp.zeros([], jnp.int32),
            num_zero_directions=jnp.zeros([], jnp.int32),
        ),
    )


def _update(
    options: _Options,
    updates: PyTree,
    state: ScaleByCurvatureStepState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByCurvatureStepState]:
    validation.check_state("scale_by_curvature_step", state, ScaleByCurvatureStepState)
    along = curvature_along_fn(
        "scale_by_curvature_step", options.curvature, params, extra_args
    )
    validation.check_same_structure("updates", updates, params)
    acc = state.minimizer_average.dtype
    due = is_due(state.count, options.refresh_period, extra_args)

    def measured() -> tuple[jax.Array, jax.Array]:
        # Along -d only the sign of the slope differs; the curvature is the same.
        found = along([updates])
        return found.slopes[0].astype(acc), found.matrix[0, 0].astype(acc)

    descent, curve = if_due(
        due, measured, lambda: (jnp.zeros([], acc), jnp.zeros([], acc))
    )
    new_state = _next_state(
        state, jnp.asarray(due), descent, curve, jnp.asarray(options.decay).astype(acc)
    )
    scaled = jax.tree.map(lambda u: times(new_state.step_size, u), updates)
    return stored_like(scaled, updates), new_state


def _next_state(
    state: ScaleByCurvatureStepState,
    due: jax.Array,
    descent: jax.Array,
    curve: jax.Array,
    decay: jax.Array,
) -> ScaleByCurvatureStepState:
    """Takes in a measurement: ``descent`` is ``-gᵀd``, ``curve`` is ``dᵀBd``."""
    minimizer = descent / jnp.where(curve == 0, 1, curve)
    highest = jnp.where(
        state.num_measured > 0,
        MAX_RATIO * _average(state.minimizer_average, state.num_measured, decay),
        jnp.finfo(descent.dtype).max,
    )
    zero = due & (descent == 0) & (curve == 0)
    good = due & (curve > 0) & (descent > 0) & jnp.isfinite(minimizer) & (minimizer > 0)
    good &= jnp.isfinite(curve)
    diagnostics = state.diagnostics
    count = state.num_measured + good.astype(jnp.int32)
    average = jnp.where(
        good,
        decay * state.minimizer_average + (1 - decay) * jnp.minimum(minimizer, highest),
        state.minimizer_average,
    )
    corrected = _average(average, count, decay)
    flipped = jnp.where(
        due & (curve != 0) & jnp.isfinite(minimizer) & jnp.isfinite(curve),
        jnp.abs(minimizer),
        state.step_size,
    )
    step_size = jnp.where(
        good,
        jnp.minimum(corrected, MAX_RATIO * minimizer),
        jnp.where(due & (count > 0), corrected, flipped),
    )
    return ScaleByCurvatureStepState(
        count=optax.safe_increment(state.count),
        num_measured=count,
        minimizer_average=average,
        step_size=step_size,
        diagnostics=CurvatureStepDiagnostics(
            step_size=step_size,
            minimizer=jnp.where(good, minimizer, diagnostics.minimizer),
            num_curvature_skips=diagnostics.num_curvature_skips
            + (due & ~good).astype(jnp.int32),
            num_zero_directions=diagnostics.num_zero_directions
            + zero.astype(jnp.int32),
        ),
    )


def _average(average: jax.Array, count: jax.Array, decay: jax.Array) -> jax.Array:
    """Corrects an average of ``count`` numbers for its start at zero."""
    weight = 1 - decay ** count.astype(decay.dtype)
    return average / jnp.where(count > 0, weight, 1)
