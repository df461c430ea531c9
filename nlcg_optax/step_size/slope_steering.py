"""The next step size of `scale_by_slope_ratio`: searched, steered, held, bounded."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.step_size.slope_control import (
    LOG_BOUND,
    ControlOptions,
    SlopeControlState,
    anneal,
)
from nlcg_optax.step_size.slope_judgment import EXPLAINED, Judgment

# In the search one step multiplies the step size by e^-1 to e^2.3. Later the adaptation
# rate multiplies these exponents, and the step size grows no faster than it shrinks, so
# that noise does not drive it up. Without a horizon nothing is annealed, and it grows
# still more slowly.
MOST_DOWN, MOST_UP = -1.0, 2.3
MOST_UP_UNBOUNDED = 0.7  # if zero does not bound the loss, which may be exponential
MOST_UP_ONCE_FOUND, MOST_UP_WITHOUT_HORIZON = 1.0, 0.5
# The search ends at the first ratio below FOUND_BELOW that is not noise: the change of
# the loss agrees with the slopes, the step promises FOUND_PROMISE of the loss, or there
# were LONGEST_SEARCH steps. Noise has ratios near zero from the first tiny step on.
FOUND_BELOW, FOUND_PROMISE, LONGEST_SEARCH = 0.3, 0.03, 30
# With a horizon, the share of the inferred slope in the slope that steers.
INFERRED_SHARE = 0.5
WINDOW_SHARE = 1 / 15  # fraction of the steps so far that the windows span at least
# With a horizon, after this many steps the ratio lengthens the step but no longer
# shortens it: the curvature of a network rises while its steps shrink, and following
# that would shorten them for good (Roulet et al., 2024).
LAST_SHORTENED = 24
# While held, a step size below this fraction of what it should be grows again.
FAR_TOO_SHORT = 0.5
# The brake acts if the averaged loss exceeds its minimum by this part of it: RISE
# (RISE_WHILE_HELD while held) if the slopes explain the excess; else UNEXPLAINED_RISE,
# once the windows widen, if the excess is above ABOVE_AVERAGE times the noise of the
# average. BRAKE then bounds the increment.
RISE, RISE_WHILE_HELD, UNEXPLAINED_RISE, ABOVE_AVERAGE = 0.05, 1.0, 0.3, 1.25
BRAKE = -0.3
LOSS_DECAY = 0.8  # decay of the average of the loss, before the windows widen
LEAST_LEAK = 0.02  # rate at which the least loss, hence a jump, is forgotten; likewise
# Fractions of the loss that a step, and the very first step, may promise; and by how
# much the logarithm of the step size may exceed that bound.
PROMISE, FIRST_PROMISE, SLACK = 1.0, 0.01, 1.0
MOST_UPHILL = 0.02  # fraction of the loss that a step may cost by its slope
MOST_GROWTH = 10.0  # largest ratio of the promise of a step to the averaged one
# Signs that a loss passes through zero: a step that promises at least NEARLY_ALL of it
# leaves less than LEFT_OF_LOSS, the slope ratio is still above STILL_STEEP, and the
# change of the loss agrees with the slopes to within AGREEMENT; or the slope ratio is
# within UNCHANGED of one, where the loss is a difference too small to be seen. A loss
# bounded by zero would flatten: a parabola to a quarter, with half the slope.
NEARLY_ALL, LEFT_OF_LOSS, STILL_STEEP, AGREEMENT = 0.9, 0.1, 0.6, 0.1
UNCHANGED = 0.02
SURELY = 2  # such signs, or negative losses, in a row; then zero is no bound


def went_on(
    options: ControlOptions, state: SlopeControlState, judgment: Judgment
) -> tuple[SlopeControlState, jax.Array, jax.Array]:
    """The scalars that choose the next step, before its slope is known.

    Args:
      options: options of the control.
      state: the scalars before this update.
      judgment: judgment of the last step.

    Returns:
      The new scalars, the ratio that steered them and the inferred slope.
    """
    found = state.found | _search_ends(state, judgment)
    averages = _averaged(options, state, judgment)
    ratio, inferred = _steering_ratio(options, averages)
    ratio = jnp.where(found, ratio, judgment.ratio)
    increment = _increment(options, state, averages, judgment, found, ratio)
    rate = jnp.asarray(options.adaptation_rate).astype(increment.dtype)
    pace = jnp.where(found, rate / averages.wider, 1)
    log_step_size = state.log_step_size + pace * increment
    new = SlopeControlState(
        count=optax.safe_increment(state.count),
        first_value=jnp.where(
            state.begun & ~judgment.jumped, state.first_value, judgment.value
        ),
        value=judgment.value,
        slope=jnp.zeros_like(state.slope),
        start_slope=averages.start_slope,
        end_slope=averages.end_slope,
        change=averages.change,
        noise=averages.noise,
        value_average=averages.value,
        value_least=averages.least,
        log_step_size=jnp.clip(log_step_size, -LOG_BOUND, LOG_BOUND),
        begun=jnp.ones_like(state.begun),
        found=found & ~judgment.jumped,
        steps_back=jnp.zeros_like(state.steps_back),
        crossings=_crossings(state, judgment),
    )
    return new, ratio, inferred


def _crossings(state: SlopeControlState, judgment: Judgment) -> jax.Array:
    """The consecutive signs that zero is not a bound of the loss."""
    promise = -state.slope
    crosses = jnp.abs(judgment.value) < LEFT_OF_LOSS * state.value
    crosses &= judgment.ratio > STILL_STEEP
    crosses &= _off_the_parabola(state, judgment) <= AGREEMENT * promise
    crosses |= jnp.abs(judgment.ratio - 1) < UNCHANGED
    crosses &= (state.value > 0) & (promise >= NEARLY_ALL * state.value)
    crosses |= judgment.value < 0
    count = jnp.where(crosses, jnp.minimum(state.crossings + 1, SURELY), 0)
    return jnp.where(state.crossings >= SURELY, SURELY, count).astype(jnp.int32)


def _off_the_parabola(state: SlopeControlState, judgment: Judgment) -> jax.Array:
    """How far the change of the loss over a step is from the mean of both slopes."""
    parabola = (state.slope + judgment.end) / 2
    off = jnp.abs(judgment.value - state.value - parabola)
    return jnp.where(state.begun, off, 0)


def _search_ends(state: SlopeControlState, judgment: Judgment) -> jax.Array:
    """Whether the ratio of the last step is small, and not just by noise."""
    certain = _off_the_parabola(state, judgment) <= jnp.abs(state.slope)
    certain |= -state.slope >= FOUND_PROMISE * jnp.abs(judgment.value)
    certain |= state.count >= LONGEST_SEARCH
    return (state.slope < 0) & certain & (judgment.ratio < FOUND_BELOW)


class _Averages(NamedTuple):
    """The averages including the last step, see `SlopeControlState`.

    ``wider`` is the width of the windows relative to their first width, and ``span``
    the number of steps in the window of the loss.
    """

    start_slope: jax.Array
    end_slope: jax.Array
    change: jax.Array
    noise: jax.Array
    value: jax.Array
    least: jax.Array
    wider: jax.Array
    span: jax.Array


def _averaged(
    options: ControlOptions, state: SlopeControlState, judgment: Judgment
) -> _Averages:
    dtype = state.value.dtype
    # Windows that widen with the run average out noise. The rate falls in proportion,
    # so that the step size follows them without oscillating.
    share = 1 - jnp.asarray(options.window_decay).astype(dtype)
    wider = jnp.maximum(WINDOW_SHARE * state.count.astype(dtype) * share, 1)
    span = wider / (1 - LOSS_DECAY)
    # Until the step is found the windows hold the last step alone.
    windowed = state.found & ~judgment.jumped

    def mean(old: jax.Array, new: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.where(windowed, (1 - weight) * old + weight * new, new)

    average = mean(state.value_average, judgment.value, 1 / span)
    leak = LEAST_LEAK / wider
    leaked = state.value_least + leak * (average - state.value_least)
    afresh = judgment.jumped | ~state.begun
    change = judgment.value - state.value
    return _Averages(
        start_slope=mean(state.start_slope, state.slope, share / wider),
        end_slope=mean(state.end_slope, judgment.end, share / wider),
        change=mean(state.change, change, share / wider),
        noise=mean(state.noise, _off_the_parabola(state, judgment), 1 / span),
        value=average,
        least=jnp.where(afresh, average, jnp.minimum(average, leaked)),
        wider=wider,
        span=span,
    )


def _steering_ratio(
    options: ControlOptions, averages: _Averages
) -> tuple[jax.Array, jax.Array]:
    """The ratio of the averaged slopes, and the inferred slope at the start."""
    start, end = averages.start_slope, averages.end_slope
    target = jnp.asarray(options.target_ratio).astype(end.dtype)
    # Along a parabola the loss changes by the mean of the two slopes. Along a convex
    # loss the slope never falls: noise that says otherwise is clipped.
    inferred = jnp.clip(2 * averages.change - end, start, jnp.minimum(end, 0))
    share = 1.0 if options.num_steps is None else INFERRED_SHARE
    steering = (1 - share) * start + share * inferred
    ratio = jnp.where(steering < 0, end / jnp.where(steering < 0, steering, -1), target)
    if options.num_steps is None:
        # The loss does not decrease, so the steps go beyond twice the minimizer.
        lowest = 2 * target - 1
        ratio = jnp.where((end > 0) & ~(inferred < 0), lowest, ratio)
        ratio = jnp.maximum(ratio, lowest)
    return ratio, inferred


def _increment(
    options: ControlOptions,
    state: SlopeControlState,
    averages: _Averages,
    judgment: Judgment,
    found: jax.Array,
    ratio: jax.Array,
) -> jax.Array:
    """By how much the logarithm of the step size should change."""
    target = jnp.asarray(options.target_ratio).astype(ratio.dtype)
    wanted = jnp.log((1 - target) / jnp.maximum(1 - ratio, 1e-3))
    once_found = (
        MOST_UP_WITHOUT_HORIZON if options.num_steps is None else MOST_UP_ONCE_FOUND
    )
    searching = jnp.where(state.crossings >= SURELY, MOST_UP_UNBOUNDED, MOST_UP)
    most = jnp.where(found, once_found, searching)
    increment = jnp.clip(wanted, MOST_DOWN, most)
    held = _is_held(options, state)
    if options.num_steps is not None:
        # Annealed steps are shorter than those of the target ratio, and grow only to
        # half of what they should be: a step back may have been by chance.
        short = jnp.log(_anneal_since_held(options, state) * FAR_TOO_SHORT)
        increment = jnp.where(held, jnp.maximum(wanted + short, 0), increment)
        settled = found & (state.count > LAST_SHORTENED)
        increment = jnp.where(settled, jnp.maximum(increment, 0), increment)
        increment = jnp.minimum(increment, most)
    rise = jnp.where(held, RISE_WHILE_HELD, RISE).astype(ratio.dtype)
    risen = averages.value - averages.least
    rising = risen > rise * jnp.abs(averages.least)
    rising &= averages.end_slope > EXPLAINED * risen / averages.span
    if options.num_steps is not None:
        # In noise the slopes may explain nothing while every step goes too far. Without
        # a horizon noise shortens the steps anyway.
        unexplained = ~held & (risen > UNEXPLAINED_RISE * jnp.abs(averages.least))
        noise = averages.noise / jnp.sqrt(averages.span)
        unexplained &= (risen > ABOVE_AVERAGE * noise) & (averages.wider > 1)
        rising |= unexplained
    # Otherwise overlong steps are not the cause.
    rising &= found & (ratio < FOUND_BELOW)
    increment = jnp.where(rising, jnp.minimum(increment, BRAKE), increment)
    return jnp.where((state.slope < 0) & ~judgment.jumped, increment, 0)


def _anneal_since_held(options: ControlOptions, state: SlopeControlState) -> jax.Array:
    dtype = state.value.dtype
    rest = jnp.maximum(1 - jnp.asarray(options.hold_after).astype(dtype), 1e-6)
    return jnp.clip(anneal(options, state.count, dtype) / rest, 1e-6, 1)


def _is_held(options: ControlOptions, state: SlopeControlState) -> jax.Array:
    if options.num_steps is None:
        return jnp.zeros([], jnp.bool_)
    dtype = state.value.dtype
    until = jnp.asarray(options.hold_after).astype(dtype) * jnp.asarray(
        options.num_steps
    ).astype(dtype)
    return state.count.astype(dtype) > until


def with_step(
    options: ControlOptions,
    old: SlopeControlState,
    new: SlopeControlState,
    ascent: jax.Array,
) -> tuple[SlopeControlState, jax.Array]:
    """Completes the scalars once the direction is known.

    Args:
      options: options of the control.
      old: the scalars before this update.
      new: the scalars from `went_on`.
      ascent: slope of the loss along the update of the nested direction.

    Returns:
      The scalars, and the factor of that update.
    """
    usable = jnp.isfinite(ascent)  # products of huge entries may overflow: no step then
    ascent = jnp.where(usable, ascent, 0)
    # A step longer than the loss over the slope (Polyak's) promises more than the loss.
    # Nothing else is known of the very first step, so it may promise less.
    part = jnp.where(old.begun, PROMISE, FIRST_PROMISE).astype(ascent.dtype)
    part = jnp.where(ascent < 0, MOST_UPHILL, part)
    # A slope that is suddenly steep is no reason for a far larger change of the loss.
    # If zero is not a bound of the loss, a step may gain as much as all before it.
    usual = MOST_GROWTH * jnp.abs(new.start_slope)
    gained = jnp.where(new.crossings >= SURELY, jnp.abs(new.first_value - new.value), 0)
    bound = jnp.maximum(jnp.abs(new.value), gained)
    promise = part * bound
    limited = old.begun & (usual > 0) & (promise > 0)
    ceiling = _longest(jnp.where(limited, jnp.minimum(promise, usual), promise), ascent)
    factor = jnp.exp(new.log_step_size) * anneal(options, old.count, ascent.dtype)
    factor = jnp.where(usable, jnp.minimum(factor, ceiling), 0)
    # The lasting step size is bounded by the averaged loss: a batch that is fitted
    # exactly has almost no loss, and would keep the steps short for good.
    level = jnp.maximum(bound, jnp.abs(new.value_average))
    lasting = jnp.log(_longest(part * level, ascent))
    lasting += jnp.where(old.begun, SLACK, 0).astype(ascent.dtype)
    lasting = jnp.where(ascent < 0, LOG_BOUND, lasting)
    log_step_size = jnp.minimum(new.log_step_size, lasting)
    log_step_size = jnp.maximum(log_step_size, -LOG_BOUND)
    return new._replace(log_step_size=log_step_size, slope=-factor * ascent), factor


def _longest(change: jax.Array, slope: jax.Array) -> jax.Array:
    """The longest step along which a slope changes the loss by at most ``change``."""
    bounded = (change > 0) & (slope != 0)
    longest = change / jnp.where(bounded, jnp.abs(slope), 1)
    tiny = jnp.finfo(slope.dtype).tiny  # a quotient may underflow
    longest = jnp.where(bounded, jnp.maximum(longest, tiny), jnp.exp(LOG_BOUND))
    return longest.astype(slope.dtype)
