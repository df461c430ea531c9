"""When a line search ends early: its bracket holds nothing but rounding, or noise."""

import jax
import jax.numpy as jnp

from nlcg_optax.linesearch.wolfe_search import (
    FAILED,
    ROUNDING,
    SearchState,
    is_running,
)

MEASURED = 3  # points, including the probe, before a search may be called idle


def failed_if_narrow(state: SearchState, resolution: jax.Array) -> SearchState:
    """Fails a running search whose bracket is no wider than ``resolution``.

    If that is the step that moves no parameter by more than a unit of rounding, a
    search at the minimum ends instead of bisecting the rounding of the slope.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nlcg_optax.linesearch import WolfeRules
      >>> from nlcg_optax.linesearch.wolfe_search import advance_point, start
      >>> rules = WolfeRules()
      >>> s = start(*map(jnp.float32, (1., -2., 1., 0.)), probe=False)
      >>> s = advance_point(rules, s, jnp.float32(4.), jnp.float32(9.))
      >>> bool(failed_if_narrow(s, jnp.float32(1.)).stage == FAILED)
      True
    """
    narrow = state.bracket[1, 0] - state.bracket[0, 0] <= resolution
    failed = narrow & is_running(state)
    return state._replace(stage=jnp.where(failed, FAILED, state.stage))


def failed_if_idle(state: SearchState, failed_before: jax.Array) -> SearchState:
    """Fails a search whose bracket, like the one before, holds nothing but rounding.

    A convex φ falls by no more than the slope at the lower end times the width. If that
    is within `ROUNDING` units of rounding of φ, and the search before has failed, this
    one would fail, too, after as many points. It measures at least `MEASURED` points.

    Args:
      state: a search.
      failed_before: whether the search before it failed.

    Returns:
      The search, failed if it is idle.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nlcg_optax.linesearch import WolfeRules
      >>> from nlcg_optax.linesearch.wolfe_search import advance_point, start
      >>> rules = WolfeRules()
      >>> s = start(*map(jnp.float32, (1., -2e-6, 1., 0.)), probe=False)
      >>> for slope in (-1e-6, -1e-6, 1e-6):
      ...     s = advance_point(rules, s, jnp.float32(1.1), jnp.float32(slope))
      >>> bool(failed_if_idle(s, jnp.bool_(True)).stage == FAILED)
      True
    """
    (low, _, slope), (high, _, _) = state.bracket
    rounding = ROUNDING * float(jnp.finfo(slope.dtype).eps) * jnp.abs(state.start_value)
    idle = -slope * (high - low) <= rounding
    idle &= failed_before & (state.num_evaluations >= MEASURED) & is_running(state)
    return state._replace(stage=jnp.where(idle, FAILED, state.stage))


def is_noise(state: SearchState) -> jax.Array:
    r"""Whether the values at the ends of the bracket say nothing about its inside.

    A convex φ differs between the ends a < b by at most the steeper slope times the
    width, and falls from a by at most the slope there times the width. Values are noise
    if

    .. math:: |\varphi(b) - \varphi(a)| - \max\{|\varphi'(a)|, |\varphi'(b)|\} (b - a)
        \ge |\varphi'(a)| (b - a)

    and the left side is positive: the values contradict the slopes by more than is left
    to gain.

    Args:
      state: a search.

    Returns:
      A boolean scalar; false while the bracket has no upper end.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nlcg_optax.linesearch import WolfeRules
      >>> from nlcg_optax.linesearch.wolfe_search import advance_point, start
      >>> s = start(*map(jnp.float32, (1., -1e-6, 1., 0.)), probe=False)
      >>> s = advance_point(WolfeRules(), s, jnp.float32(1.1), jnp.float32(1e-6))
      >>> bool(is_noise(s))
      True
    """
    (low, low_value, low_slope), (high, high_value, high_slope) = state.bracket
    width = high - low
    steepest = jnp.maximum(jnp.abs(low_slope), jnp.abs(high_slope))
    excess = jnp.abs(high_value - low_value) - steepest * width
    counts = jnp.isfinite(excess) & (excess > 0)
    return counts & (excess >= jnp.abs(low_slope) * width)
