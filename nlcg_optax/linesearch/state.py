"""State and diagnostics of the Hager-Zhang line search."""

from typing import NamedTuple

import jax

from nlcg_optax.dtypes import PyTree
from nlcg_optax.linesearch.trial_step import ErrorEstimate


class HagerZhangDiagnostics(NamedTuple):
    """What `scale_by_hager_zhang_linesearch` did, as scalars.

    Attributes:
      step_size: the step that was taken; zero if there was none to take.
      accepted: whether it satisfies the Wolfe or the approximate Wolfe conditions.
      num_values: values measured without a gradient so far.
      num_gradients: values measured together with a gradient so far.
      num_failed_searches: searches so far that ended without an accepted step.
      num_ascent_directions: searches so far along updates of positive slope, which take
        no step; at every step it means that ``optax.scale(-1.)`` was forgotten.
    """

    step_size: jax.Array
    accepted: jax.Array
    num_values: jax.Array
    num_gradients: jax.Array
    num_failed_searches: jax.Array
    num_ascent_directions: jax.Array


class ScaleByHagerZhangLinesearchState(NamedTuple):
    """State of `scale_by_hager_zhang_linesearch`.

    Attributes:
      count: number of updates.
      previous_step: the last step that was taken, zero before the first.
      unit_step_fits: whether the minimizer of the last search was near the unit step.
      value: the objective at the new parameters, for `optax.value_and_grad_from_state`;
        float32 or wider.
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
