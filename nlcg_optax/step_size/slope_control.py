"""The scalars of `scale_by_slope_ratio`, and its numeric arguments.

`judge` of ``slope_judgment`` decides whether the last step was too long. Then
`stepped_back` of that module or `went_on` of ``slope_steering`` gives the new scalars.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LOG_BOUND = 60.0  # bound of the logarithm of the step size


class ControlOptions(NamedTuple):
    """The checked numeric arguments of `scale_by_slope_ratio`."""

    num_steps: Any
    target_ratio: Any
    adaptation_rate: Any
    window_decay: Any
    hold_after: Any
    initial_step_size: Any


class SlopeControlState(NamedTuple):
    """The scalars of `scale_by_slope_ratio`.

    Attributes:
      count: number of updates.
      first_value: loss where the first step began.
      value: loss where the last step began.
      slope: slope of the loss along the last step, at its start, times its length;
        zero if there was no step.
      start_slope: windowed average of ``slope``.
      end_slope: windowed average of the slope where the steps ended.
      change: windowed average of the change of the loss over a step.
      noise: windowed average of how far that change is from the mean of both slopes.
      value_average: windowed average of the loss.
      value_least: the minimum of ``value_average``, slowly forgotten.
      log_step_size: logarithm of the step size.
      begun: whether a step was taken.
      found: whether the search for the step size is over.
      steps_back: consecutive steps back.
      crossings: consecutive signs that zero is not a lower bound of the loss; two
        are kept for good.
    """

    count: jax.Array  # type: ignore[assignment]
    first_value: jax.Array
    value: jax.Array
    slope: jax.Array
    start_slope: jax.Array
    end_slope: jax.Array
    change: jax.Array
    noise: jax.Array
    value_average: jax.Array
    value_least: jax.Array
    log_step_size: jax.Array
    begun: jax.Array
    found: jax.Array
    steps_back: jax.Array
    crossings: jax.Array


def init_control(options: ControlOptions, dtype: jnp.dtype) -> SlopeControlState:
    """The scalars before the first step."""
    first = jnp.asarray(options.initial_step_size).astype(dtype)
    # One array per field: `jax.jit` cannot donate an array twice.
    return SlopeControlState(
        count=jnp.zeros([], jnp.int32),
        first_value=jnp.zeros([], dtype),
        value=jnp.zeros([], dtype),
        slope=jnp.zeros([], dtype),
        start_slope=jnp.zeros([], dtype),
        end_slope=jnp.zeros([], dtype),
        change=jnp.zeros([], dtype),
        noise=jnp.zeros([], dtype),
        value_average=jnp.zeros([], dtype),
        value_least=jnp.zeros([], dtype),
        log_step_size=jnp.log(first),
        begun=jnp.zeros([], jnp.bool_),
        found=jnp.zeros([], jnp.bool_),
        steps_back=jnp.zeros([], jnp.int32),
        crossings=jnp.zeros([], jnp.int32),
    )


def anneal(options: ControlOptions, count: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The factor that falls linearly to zero at the horizon; one without a horizon."""
    if options.num_steps is None:
        return jnp.ones([], dtype)
    done = count.astype(dtype) / jnp.asarray(options.num_steps).astype(dtype)
    return jnp.maximum(1 - done, 0)
