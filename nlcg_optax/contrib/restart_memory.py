"""A direction that restarts where it stalls in the span of the last directions."""

from typing import Any, NamedTuple

import optax

from nlcg_optax import validation
from nlcg_optax.contrib import recent_directions
from nlcg_optax.contrib.recent_directions import RecentDirections
from nlcg_optax.direction.beta import decide
from nlcg_optax.direction.options import Options, checked_options
from nlcg_optax.direction.products import measure
from nlcg_optax.direction.state import ScaleByNlcgState
from nlcg_optax.direction.transform import (
    advance,
    check_state,
    init,
    precondition,
    scale_by_nlcg,
)
from nlcg_optax.dtypes import PyTree
from nlcg_optax.transformation import transformation
from nlcg_optax.wrappers.not_schedules import not_schedules


class ScaleByNlcgWithRestartMemoryState(NamedTuple):
    """State of `scale_by_nlcg_with_restart_memory`.

    Attributes:
      direction_state: state of `scale_by_nlcg`.
      recent: the last directions.
    """

    direction_state: ScaleByNlcgState
    recent: RecentDirections


@not_schedules("rule", static=("memory",), others=scale_by_nlcg)
def scale_by_nlcg_with_restart_memory(
    rule: Any = "pr+", *, memory: int = 11, **kwargs: Any
) -> optax.GradientTransformationExtraArgs:
    """`scale_by_nlcg` that also restarts where progress stalls in a subspace.

    It restarts where the preconditioned gradient lies, to within 1 %, in the span of
    the last ``memory`` directions since the last restart, in the norm of P⁻¹. The test
    is made only if there are more than ``memory`` parameters. Source: Hager and Zhang,
    "The limited memory conjugate gradient method", SIAM J. Optim. 23, 2013.

    It did not help: ``minimize`` with ``hs+`` solves 169 of 184 classical problems at a
    work of 1.407 with it, 171 at 1.420 without (``experiments/classical/README.md``).

    Args:
      rule: see `scale_by_nlcg`.
      memory: the number of directions, each a copy of the parameters.
      **kwargs: other arguments of `scale_by_nlcg`, except ``scope``.

    Returns:
      A transformation with state `ScaleByNlcgWithRestartMemoryState`.

    Raises:
      ValueError: as `scale_by_nlcg`, or if ``memory`` is not a positive integer.
      TypeError: as `scale_by_nlcg`.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_nlcg_with_restart_memory(0.5, memory=2)
      >>> state = tx.init(jnp.zeros(3))
      >>> restarted = []
      >>> for g in jnp.array([[1., 0., 0.], [0., 1., 0.], [.2, .3, 0.]]):
      ...     _, state = tx.update(g, state)
      ...     restarted.append(bool(state.direction_state.diagnostics.restarted))
      >>> restarted
      [True, False, True]
    """
    validation.check_static(memory=memory)
    validation.check_positive_int("memory", memory)
    options = checked_options(rule, **kwargs)
    if options.scope != "global":
        raise ValueError(
            f"scope={options.scope!r} must be 'global': the last directions span one "
            "subspace of all parameters"
        )

    return transformation(_Options(int(memory), options), _init, _update)


class _Options(NamedTuple):
    """The number of directions, and the options of the direction."""

    memory: int
    direction: Options


def _init(options: _Options, params: PyTree) -> ScaleByNlcgWithRestartMemoryState:
    state = init(options.direction, params)
    return ScaleByNlcgWithRestartMemoryState(
        state,
        recent_directions.none_yet(state.direction, options.memory, state.d_d.dtype),
    )


def _update(
    all_options: _Options,
    g: PyTree,
    both: ScaleByNlcgWithRestartMemoryState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByNlcgWithRestartMemoryState]:
    name = "scale_by_nlcg_with_restart_memory"
    validation.check_state(name, both, ScaleByNlcgWithRestartMemoryState)
    options = all_options.direction
    state, recent = both
    check_state(name, options, g, state)
    z, preconditioner_state = precondition(options, g, state, params, extra_args)
    measured = measure(options.needs, g, z, state, options.scope)
    e_z = recent_directions.products_with(recent, z)
    stalled = recent_directions.is_stalled(recent, g, e_z, measured.g_z)
    decision = decide(options, measured, state, must_restart=stalled)
    recent = recent_directions.remember(
        recent,
        g,
        decision.beta,
        e_z,
        decision.d_pinv_d,
        decision.restarted,
        decision.finite,
    )
    updates, state = advance(options, decision, g, z, preconditioner_state, state)
    return updates, ScaleByNlcgWithRestartMemoryState(state, recent)
