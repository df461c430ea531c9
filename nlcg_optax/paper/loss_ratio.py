"""The paper's step control: a multiplier of the step that follows ratios of losses."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import (
    PyTree,
    accumulator_dtype,
    compute_dtype,
    stored,
    stored_like,
    times,
    zeros_like,
)
from nlcg_optax.transformation import transformation

MODES = ("step", "online")

# arXiv 1812.02886: where the loss ratio exceeds 1 + margin * threshold, the multiplier
# is multiplied by `shrink` and the fraction `undo` of the previous step is taken back.
# Worst first; the first row that applies acts.
RATIO_TABLE = (
    # margin, shrink, undo
    (0.15, 0.5, 0.9),
    (0.125, 0.7, 0.7),
    (0.10, 0.8, 0.5),
    (0.075, 0.9, 0.3),
    (0.05, 0.95, 0.2),
    (0.025, 0.975, 0.1),
    (0.01, 1.0, 0.1),
)
GROWTH = {"step": 1.05, "online": 1.02}  # of the multiplier at a good ratio
LOSS_DECAY = 0.7  # L <- .7 L + .3 loss
MIN_MULTIPLIER = 1e-4
MAX_MULTIPLIER = 1.0


class LossRatioDiagnostics(NamedTuple):
    """What the last call of `scale_by_loss_ratio`'s update did, as scalars.

    Attributes:
      step_multiplier: the multiplier b after the step.
      loss_ratio: the last ratio that was measured, one at first.
      undone: the fraction of the previous step that was taken back.
      num_value_skips: calls so far whose ``value`` was not finite.
    """

    step_multiplier: jax.Array
    loss_ratio: jax.Array
    undone: jax.Array
    num_value_skips: jax.Array


class ScaleByLossRatioState(NamedTuple):
    """State of `scale_by_loss_ratio`.

    Attributes:
      count: number of steps with a finite loss.
      step_multiplier: the multiplier b.
      loss_average: the exponential average L.
      loss_reference: L at the last action of the mode ``"step"``.
      previous_updates: the last incoming updates, or the empty tuple.
      diagnostics: what the last update did.
    """

    count: jax.Array  # type: ignore[assignment]
    step_multiplier: jax.Array
    loss_average: jax.Array
    loss_reference: jax.Array
    previous_updates: PyTree
    diagnostics: LossRatioDiagnostics


def scale_by_loss_ratio(
    mode: Literal["step", "online"] = "step",
    *,
    period: int = 5,
    threshold: float | jax.Array = 1.0,
    undo: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the update by a factor that falls when the loss rises.

    With the loss average :math:`L \leftarrow .7 L + .3\,\mathrm{value}`, the ratio is
    :math:`L / L_{old}` every ``period`` steps (mode ``"step"``; :math:`L_{old}` is L
    at the last action) or :math:`\mathrm{value} / L` at every step (``"online"``).
    ``RATIO_TABLE`` gives for each bad ratio a factor c of the multiplier b and the
    fraction k of the previous step to undo:

    .. math::
        b_{new} = \max(c\, b, 10^{-4}), \qquad
        u \leftarrow (1 - k)\, b_{new}\, u_t - k\, b\, u_{t-1};

    at a good ratio b grows by 5 % (``"step"``) or 2 % (``"online"``), up to one.
    Source: arXiv 1812.02886. The ratio is computed as
    :math:`1 + (p - q) / |q|`, which is p/q for a positive q and keeps its meaning (a
    rise is above one) for losses that are zero or negative.

    Place it after `scale_by_nlcg` and before the learning rate. The undone step is
    :math:`\eta_t b\, d_{t-1}` with the learning rate of *this* step, as in the paper.

    Args:
      mode: ``"step"`` or ``"online"``.
      period: steps between actions in the mode ``"step"``; not used in ``"online"``.
      threshold: factor of all margins in the table, positive.
      undo: whether to take back part of the last step, at the cost of one copy of the
        parameters; without it k = 0 throughout.

    Returns:
      A transformation whose ``update`` needs the extra argument ``value``, the loss of
      the batch (averaged over devices and micro-batches). A non-finite value leaves
      the averages and the multiplier unchanged, and this multiplier applies.

    Raises:
      ValueError: if an argument is out of its range, or ``value`` is missing or not a
        real scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_loss_ratio("online", undo=False)
      >>> state = tx.init(jnp.zeros(1))
      >>> for value in (1., 2.):  # a doubled loss halves the step
      ...     updates, state = tx.update(jnp.ones(1), state, value=value)
      >>> updates
      Array([0.5], dtype=float32)
    """
    validation.check_choice("mode", mode, MODES)
    validation.check_positive_int("period", period)
    validation.check_positive("threshold", threshold)
    validation.check_static(undo=undo)
    validation.check_bool("undo", undo)

    options = _Options(mode, period, threshold, undo)

    return transformation(options, _init, _update)


class _Options(NamedTuple):
    """The arguments of `scale_by_loss_ratio`."""

    mode: str
    period: Any
    threshold: Any
    undo: bool


class _Decision(NamedTuple):
    """The new multiplier, and the quantities from which it was derived."""

    step_multiplier: jax.Array
    undone: jax.Array
    loss_ratio: jax.Array
    loss_average: jax.Array
    loss_reference: jax.Array


def _init(options: _Options, params: PyTree) -> ScaleByLossRatioState:
    acc = accumulator_dtype(params)
    return ScaleByLossRatioState(
        count=jnp.zeros([], jnp.int32),
        step_multiplier=jnp.ones([], acc),
        loss_average=jnp.zeros([], acc),
        loss_reference=jnp.zeros([], acc),
        previous_updates=zeros_like(params) if options.undo else (),
        diagnostics=LossRatioDiagnostics(
            step_multiplier=jnp.ones([], acc),
            loss_ratio=jnp.ones([], acc),
            undone=jnp.zeros([], acc),
            num_value_skips=jnp.zeros([], jnp.int32),
        ),
    )


def _update(
    options: _Options,
    updates: PyTree,
    state: ScaleByLossRatioState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByLossRatioState]:
    del params
    name = "scale_by_loss_ratio"
    validation.check_state(name, state, ScaleByLossRatioState)
    validation.check_stored(name, state, updates, previous_updates=options.undo)
    value = validation.require(
        name, "value", extra_args.get("value"), "the loss of this batch", extra_args
    )
    validation.check_scalar_loss(name, value)
    b = state.step_multiplier
    value = jnp.asarray(value).astype(b.dtype)
    finite = jnp.isfinite(value)
    decision = _decide(options, state, value, finite)
    new_b, undone = decision.step_multiplier, decision.undone
    if options.undo:
        new_updates = jax.tree.map(
            lambda u, last: (
                times((1 - undone) * new_b, u)
                - times(undone * b, last).astype(compute_dtype(u.dtype))
            ),
            updates,
            state.previous_updates,
        )
    else:
        new_updates = jax.tree.map(lambda u: times(new_b, u), updates)
    return stored_like(new_updates, updates), ScaleByLossRatioState(
        count=jnp.where(finite, optax.safe_increment(state.count), state.count),
        step_multiplier=new_b,
        loss_average=decision.loss_average,
        loss_reference=decision.loss_reference,
        previous_updates=(
            jax.tree.map(_finite_or_zero, updates, state.previous_updates)
            if options.undo
            else ()
        ),
        diagnostics=LossRatioDiagnostics(
            step_multiplier=new_b,
            loss_ratio=decision.loss_ratio,
            undone=undone,
            num_value_skips=state.diagnostics.num_value_skips
            + (~finite).astype(jnp.int32),
        ),
    )


def _decide(
    options: _Options, state: ScaleByLossRatioState, value: jax.Array, finite: jax.Array
) -> _Decision:
    """Scalars only: the ratio of the losses, and the row of the table that it picks."""
    first = state.count == 0
    average = LOSS_DECAY * state.loss_average + (1 - LOSS_DECAY) * value
    average = jnp.where(first, value, average)
    if options.mode == "step":
        acts = ~first & (state.count % options.period == 0)
        ratio = _ratio(average, state.loss_reference)
        reference = jnp.where(first | acts, average, state.loss_reference)
    else:
        acts = ~first
        ratio = _ratio(value, average)
        reference = state.loss_reference
    acts &= finite
    b = state.step_multiplier
    shrink, undone = _look_up(ratio, jnp.asarray(options.threshold).astype(b.dtype))
    grown = jnp.minimum(GROWTH[options.mode] * b, MAX_MULTIPLIER)
    shrunk = jnp.maximum(shrink * b, MIN_MULTIPLIER)
    return _Decision(
        step_multiplier=jnp.where(acts, jnp.where(shrink > 1, grown, shrunk), b),
        undone=jnp.where(acts & options.undo, undone, 0),
        loss_ratio=jnp.where(acts, ratio, state.diagnostics.loss_ratio),
        loss_average=jnp.where(finite, average, state.loss_average),
        loss_reference=jnp.where(finite, reference, state.loss_reference),
    )


def _ratio(new: jax.Array, old: jax.Array) -> jax.Array:
    """``new / old`` for positive losses; above one for a rise whatever the sign."""
    tiny = jnp.finfo(old.dtype).tiny
    largest = jnp.finfo(old.dtype).max
    change = new - old
    # The quotient stays finite, also where the old loss is zero.
    least = jnp.maximum(jnp.abs(change) / (largest / 2), tiny)
    return 1 + change / jnp.maximum(jnp.abs(old), least)


def _look_up(ratio: jax.Array, threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Factor of the multiplier and fraction to undo; a factor above one means good."""
    shrink, undone = jnp.full_like(ratio, 2), jnp.zeros_like(ratio)
    for margin, row_shrink, row_undo in reversed(RATIO_TABLE):
        applies = ratio > 1 + margin * threshold
        shrink = jnp.where(applies, row_shrink, shrink)
        undone = jnp.where(applies, row_undo, undone)
    return shrink, undone


def _finite_or_zero(update: jax.Array, like: jax.Array) -> jax.Array:
    return stored(jnp.where(jnp.isfinite(update), update, 0), like.dtype)


def feed_step_multiplier(
    direction: optax.GradientTransformation,
    controller: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """``optax.chain(direction, controller)`` with feedback from the controller.

    The direction, and the preconditioner nested in it, receive the controller's
    multiplier of the previous step as the extra argument ``step_multiplier``.
    The paper's `scale_by_diagonal_secant` needs it to know the step that was taken. A
    ``step_multiplier`` that ``update`` is given, as by one of these around this one,
    multiplies it.

    Args:
      direction: such as `scale_by_nlcg`.
      controller: such as `scale_by_loss_ratio`; its state has ``step_multiplier``.

    Returns:
      A transformation with the state of the chain.

    Raises:
      TypeError: if an argument is not a transformation, or (in ``init``) the state of
        ``controller`` has no ``step_multiplier``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nlcg_optax import scale_by_nlcg
      >>> tx = feed_step_multiplier(scale_by_nlcg("fr"), scale_by_loss_ratio())
      >>> updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=1.)
      >>> updates
      Array([1.], dtype=float32)
    """
    validation.check_transformation("direction", direction)
    validation.check_transformation("controller", controller)
    direction = optax.with_extra_args_support(direction)
    controller = optax.with_extra_args_support(controller)
    chained = optax.chain(direction, controller)

    def init_fn(params: PyTree) -> PyTree:
        state = chained.init(params)
        if not hasattr(state[1], "step_multiplier"):
            raise TypeError(
                f"controller has a state of type {type(state[1]).__name__} without "
                "`step_multiplier`; allowed is one such as scale_by_loss_ratio"
            )
        return state

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        validation.check_chain_state("feed_step_multiplier", state, 2)
        multiplier = state[1].step_multiplier
        if "step_multiplier" in extra_args:  # that of one around this
            given = jnp.asarray(extra_args.pop("step_multiplier"))
            multiplier *= given.astype(multiplier.dtype)
        updates, direction_state = direction.update(
            updates, state[0], params, **extra_args, step_multiplier=multiplier
        )
        updates, controller_state = controller.update(
            updates, state[1], params, **extra_args
        )
        return updates, (direction_state, controller_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
