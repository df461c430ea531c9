"""The configuration of arXiv 1812.02886, with its learning-rate schedule."""

from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.direction.options import checked_options
from nlcg_optax.direction.transform import build as build_direction
from nlcg_optax.paper.layerwise import scale_by_layerwise_ratio
from nlcg_optax.paper.loss_ratio import feed_step_multiplier, scale_by_loss_ratio
from nlcg_optax.paper.rules import PAPER_RULES
from nlcg_optax.preconditioners.secant import build as build_secant
from nlcg_optax.preconditioners.secant import checked_options as secant_options
from nlcg_optax.wrappers.extra_args import checked_chain

PAPER_CONTROLS = (None, "step", "online")


def paper_nlcg(
    learning_rate: optax.ScalarOrSchedule,
    rule: Literal["fr", "pr"] = "fr",
    *,
    diagonal_bfgs: bool = True,
    step_control: Literal["step", "online"] | None = "step",
    period: int = 5,
    threshold: float = 1.0,
    layerwise_eta: float | None = None,
    restart_period: int | None = None,
    reset_period: int | None = None,
    spectral_scaling: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""The stochastic preconditioned NLCG of arXiv 1812.02886, equation by equation.

    Layer-wise scaling (optional), diagonal BFGS from gradient differences, FR or PR
    with β clipped to [0, 1], the loss-based step controller with its partial undo,
    then :math:`\theta \leftarrow \theta + \eta_t b\, d_t`. The defaults are those
    of the paper's program. Unlike `nlcg` it does not restart at directions that do not
    descend, because the program does not.

    Args:
      learning_rate: number or schedule; the paper's is `paper_schedule`.
      rule: ``"fr"``, or ``"pr"`` with the stored preconditioned residual.
      diagonal_bfgs: whether to precondition.
      step_control: ``"step"``, ``"online"`` or None.
      period: steps between the actions of ``"step"``.
      threshold: factor of the controller's margins.
      layerwise_eta: trust coefficient of the layer-wise scaling, 0.001 in the paper;
        None switches it off.
      restart_period: steps between restarts; None for never.
      reset_period: steps between resets of the diagonal BFGS estimate to one; None for
        never. The paper's program has 100, but switched off.
      spectral_scaling: whether the last term of that estimate is
        :math:`(y^2 + \epsilon) / (y^\top y + \epsilon)` instead, which the paper's
        program has, but switched off; see `scale_by_diagonal_secant`.

    Returns:
      The optimizer. ``update`` takes the extra argument ``value``, the mini-batch
      loss, unless ``step_control`` is None.

    Raises:
      ValueError: if an argument is out of its range, or is an option of diagonal BFGS
        while that is off.
      TypeError: if ``learning_rate`` is neither a number nor a schedule or, in
        ``update``, the state is not this optimizer's.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> tx = paper_nlcg(0.1)
      >>> params = jnp.array([1., 2.])
      >>> updates, _ = tx.update(params, tx.init(params), params, value=2.5)
      >>> updates
      Array([-0.1, -0.2], dtype=float32)
    """
    remedy = ""
    if isinstance(learning_rate, str) and learning_rate in PAPER_RULES:
        remedy = f"; the rule comes second: paper_nlcg(0.1, {learning_rate!r})"
    validation.check_rate("learning_rate", learning_rate, remedy)
    validation.check_choice("rule", rule, tuple(PAPER_RULES))
    validation.check_choice("step_control", step_control, PAPER_CONTROLS)
    validation.check_static(diagonal_bfgs=diagonal_bfgs)
    validation.check_bool("diagonal_bfgs", diagonal_bfgs)
    if not diagonal_bfgs and (reset_period is not None or spectral_scaling):
        raise ValueError(
            f"reset_period={reset_period!r} and spectral_scaling={spectral_scaling!r} "
            "must be None and False with diagonal_bfgs=False, since they are options "
            "of diagonal BFGS"
        )
    preconditioner = None
    if diagonal_bfgs:
        preconditioner = build_secant(
            secant_options(
                learning_rate,
                reset_period=reset_period,
                spectral_scaling=spectral_scaling,
            )
        )
    direction = build_direction(
        checked_options(
            PAPER_RULES[rule],
            preconditioner=preconditioner,
            beta_min=0.0,
            beta_max=1.0,
            restart_period=restart_period,
            restart=None,
            ensure_positive=False,
        )
    )
    if step_control is not None:
        direction = feed_step_multiplier(
            direction,
            scale_by_loss_ratio(step_control, period=period, threshold=threshold),
        )
    parts = [direction, optax.scale_by_learning_rate(learning_rate)]
    if layerwise_eta is not None:
        validation.check_positive("layerwise_eta", layerwise_eta)
        parts.insert(0, scale_by_layerwise_ratio(layerwise_eta))
    return checked_chain("paper_nlcg", parts)


def paper_schedule(
    max_value: float | jax.Array,
    steps_per_epoch: float,
    *,
    init_value: float = 0.0,
    warmup_epochs: float = 25,
    decay_epochs: tuple[float, ...] = (102, 153),
    decay_factor: float = 0.1,
) -> optax.Schedule:
    r"""The learning-rate schedule of arXiv 1812.02886.

    With T the number of warm-up steps,

    .. math::
        \eta_t = \max - (\max - \mathrm{init}) \sqrt{1 - t / T} \quad (t < T),

    then ``max_value``, multiplied by ``decay_factor`` at each of ``decay_epochs``
    (102 and 153 of 200 epochs). The published maxima are 0.8 at batch 2048 and 1.6 at
    4096, that is 0.1 per 256 images.

    Args:
      max_value: learning rate after the warm-up.
      steps_per_epoch: steps in an epoch; need not be whole.
      init_value: learning rate at step 0.
      warmup_epochs: length of the warm-up; zero for none.
      decay_epochs: when to decay, in increasing order.
      decay_factor: what to multiply by.

    Returns:
      A function from the step count to the learning rate.

    Raises:
      TypeError: if ``decay_epochs`` is a single number.
      ValueError: if an argument is out of its range.

    Examples:
      >>> schedule = paper_schedule(0.8, steps_per_epoch=4)
      >>> [round(float(schedule(t)), 3) for t in (0, 75, 100, 408, 612)]
      [0.0, 0.4, 0.8, 0.08, 0.008]
    """
    validation.check_positive("max_value", max_value)
    validation.check_positive("steps_per_epoch", steps_per_epoch)
    validation.check_non_negative("init_value", init_value)
    validation.check_non_negative("warmup_epochs", warmup_epochs)
    validation.check_positive("decay_factor", decay_factor)
    if not isinstance(decay_epochs, Iterable):
        raise TypeError(
            f"decay_epochs={decay_epochs!r} is a {type(decay_epochs).__name__}; "
            "allowed is a sequence of numbers"
        )
    if list(decay_epochs) != sorted(decay_epochs) or min(decay_epochs, default=1) <= 0:
        raise ValueError(
            f"decay_epochs={decay_epochs!r} must be positive and in increasing order"
        )
    warmup_steps = warmup_epochs * steps_per_epoch
    decay_steps = [round(epoch * steps_per_epoch) for epoch in decay_epochs]
    # Two epochs may round to the same step.
    factors = {step: decay_factor ** decay_steps.count(step) for step in decay_steps}
    decay = optax.piecewise_constant_schedule(1.0, factors)

    def schedule(count: jax.Array | int) -> jax.Array:
        step = jnp.asarray(count, dtype=jnp.result_type(float))
        left = jnp.clip(1 - step / warmup_steps, 0, 1) if warmup_steps else 0.0
        most, first = (
            jnp.asarray(x).astype(step.dtype) for x in (max_value, init_value)
        )
        warm = most - (most - first) * jnp.sqrt(left)
        return warm * decay(step)

    return schedule
