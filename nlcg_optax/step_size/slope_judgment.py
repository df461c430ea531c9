"""Whether the last step of `scale_by_slope_ratio` was too long, and by how much."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.step_size.slope_control import LOG_BOUND, SlopeControlState

# A step overshoots if its end slope is more than twice as steep the other way and the
# loss is 5 % above the last and the averaged one, or if its end slope is uphill and the
# loss is above them by 1.5 times their size. In either case the slope must explain the
# rise, which must exceed twice the noise.
OVERSHOOT_RATIO, OVERSHOOT_RISE, JUMP, ABOVE_NOISE = -2.0, 0.05, 1.5, 2.0
EXPLAINED = 0.25  # a rise of which the end slope explains a smaller share is noise
SHORTEST, LONGEST = 0.05, 0.5  # fraction of a step that a step back may leave
MAX_STEPS_BACK = 8  # in a row; then the loss itself must have changed
# After so many non-finite losses in a row, more of them say nothing new: they may come
# from bad batches.
MAX_SHRINKS = 3


class Judgment(NamedTuple):
    """The judgment of the last step by its end.

    Attributes:
      value: the loss there, zero if anything is not finite.
      end: the slope there, zero if anything is not finite.
      finite: whether both are finite.
      ratio: ``end`` over the slope where the step began; one if there was no descent.
      back: whether to step back.
      kept: the fraction of the step that a step back leaves.
      lasting: the fraction of the step size that a step back leaves.
      jumped: whether steps back did not help, so that the search starts again here.
    """

    value: jax.Array
    end: jax.Array
    finite: jax.Array
    ratio: jax.Array
    back: jax.Array
    kept: jax.Array
    lasting: jax.Array
    jumped: jax.Array


def judge(state: SlopeControlState, value: jax.Array, end: jax.Array) -> Judgment:
    """Judges the last step by the loss and the slope at its end.

    Args:
      state: the scalars before this update.
      value: the loss.
      end: inner product of the last step and the gradient.

    Returns:
      The judgment.
    """
    finite = jnp.isfinite(value) & jnp.isfinite(end)
    value, end = jnp.where(finite, value, 0), jnp.where(finite, end, 0)
    ratio = _ratio(end, state.slope)
    # In noise the last loss and the slopes may be low by chance; the average is not.
    before = jnp.maximum(state.value, state.value_average)
    above = value - before
    too_far = (ratio < OVERSHOOT_RATIO) & (above > OVERSHOOT_RISE * jnp.abs(before))
    too_far |= (ratio < 0) & (above > JUMP * jnp.abs(before))
    too_far &= above > ABOVE_NOISE * state.noise
    # A convex loss cannot rise by more than the slope at the end. Once steps back have
    # begun they continue until the loss is lower.
    too_far &= (end > EXPLAINED * (value - state.value)) | (state.steps_back > 0)
    jumped = finite & too_far & (state.steps_back >= MAX_STEPS_BACK)
    # The slope of a fitted batch is almost zero and says little about the step size. So
    # does a batch that is still hard after the first step back.
    steepest = jnp.minimum(state.slope, state.start_slope)
    lasting = _minimizer(_ratio(end, steepest))
    lasting = jnp.where(state.steps_back > 0, LONGEST, lasting)
    # One bad batch halves the step; if more follow, it shrinks faster and faster. Later
    # steps shrink too, unless the step size had been found and this may be chance.
    in_a_row = state.steps_back - state.found.astype(jnp.int32)
    shrinks = (in_a_row >= 0) & (in_a_row < MAX_SHRINKS)
    return Judgment(
        value=value,
        end=end,
        finite=finite,
        ratio=ratio,
        back=~finite | (too_far & ~jumped),
        kept=jnp.where(finite, _minimizer(ratio), _halved(state.steps_back, ratio)),
        lasting=jnp.where(
            finite, lasting, jnp.where(shrinks, _halved(in_a_row, ratio), 1)
        ),
        jumped=jumped,
    )


def _ratio(end: jax.Array, start: jax.Array) -> jax.Array:
    """The slope at the end of a step over that at its start; one without descent."""
    return jnp.where(start < 0, end / jnp.where(start < 0, start, -1), 1)


def _halved(times: jax.Array, like: jax.Array) -> jax.Array:
    """The fraction of the rest that is kept after so many earlier halvings, bounded."""
    return jnp.maximum(LONGEST ** (times + 1).astype(like.dtype), SHORTEST)


def _minimizer(ratio: jax.Array) -> jax.Array:
    """The fraction of a step that ends at the minimizer of the parabola, bounded."""
    return jnp.clip(1 / (1 - jnp.minimum(ratio, 0)), SHORTEST, LONGEST)


def stepped_back(state: SlopeControlState, judgment: Judgment) -> SlopeControlState:
    """The scalars after a step back: only a fraction of the last step is left."""
    log_kept = jnp.log(judgment.lasting)
    return state._replace(
        count=optax.safe_increment(state.count),
        slope=judgment.kept * state.slope,
        log_step_size=jnp.maximum(state.log_step_size + log_kept, -LOG_BOUND),
        found=state.found | (judgment.finite & judgment.back),
        steps_back=state.steps_back + 1,
    )
