"""A bound on the length of directions, from scalars that the direction knows."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.direction.state import ScaleByNlcgState
from nlcg_optax.dtypes import PyTree, accumulator_dtype, times

NORMS = ("euclidean", "slope")


class NormConstraintDiagnostics(NamedTuple):
    """What `constrain_norm` did, as scalars.

    Attributes:
      norm_factor: what the last update was multiplied by, at most one.
      num_constrained: updates so far that were shortened.
    """

    norm_factor: jax.Array
    num_constrained: jax.Array


class ConstrainNormState(NamedTuple):
    """State of `constrain_norm`.

    Attributes:
      direction_state: state of the direction.
      count: number of updates.
      diagnostics: what was done.
    """

    direction_state: PyTree
    count: jax.Array  # type: ignore[assignment]
    diagnostics: NormConstraintDiagnostics


def constrain_norm(
    direction: optax.GradientTransformation,
    max_norm: optax.ScalarOrSchedule,
    *,
    norm: Literal["euclidean", "slope"] = "euclidean",
) -> optax.GradientTransformationExtraArgs:
    r"""Shortens directions of `scale_by_nlcg` that are too long, at no cost.

    The update becomes :math:`-\nu d` with

    .. math:: \nu = \min\left(1, \frac{\mathrm{max\_norm}}{\|d\|}\right),
        \qquad \|d\| = \sqrt{d^\top d} \text{ or } \sqrt{-g^\top d}.

    Both norms are in the state of `scale_by_nlcg`, so that no reduction over the
    parameters is made. The second one ("slope") is that of the trust region of K-FAC
    (Ba, Grosse and Martens, 2017): without memory :math:`d = -P g`, and
    :math:`-g^\top d = d^\top P^{-1} d` measures d in the metric of the preconditioner.
    The recursion of the directions goes on with d itself, whatever its length.

    Args:
      direction: `scale_by_nlcg`, alone or in a chain that holds one.
      max_norm: the bound of the update that leaves, before any learning rate; a
        positive number or a schedule.
      norm: ``"euclidean"`` or ``"slope"``.

    Returns:
      The direction with the constraint behind it.

    Raises:
      TypeError: if ``direction`` is no transformation.
      ValueError: if an argument is out of its range or, in ``init``, the direction
        holds not exactly one `scale_by_nlcg`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nlcg_optax import scale_by_nlcg
      >>> tx = constrain_norm(scale_by_nlcg("fr"), 1.)
      >>> grads = jnp.array([3., 4.])
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> updates
      Array([0.6, 0.8], dtype=float32)
    """
    validation.check_transformation("direction", direction)
    if not callable(max_norm):
        validation.check_positive("max_norm", max_norm)
    validation.check_choice("norm", norm, NORMS)
    inner = optax.with_extra_args_support(direction)

    def init_fn(params: PyTree) -> ConstrainNormState:
        acc = accumulator_dtype(params)
        direction_state = inner.init(params)
        found = len(_nlcg_states(direction_state))
        if found != 1:
            raise ValueError(
                f"direction={direction!r} holds {found} states of scale_by_nlcg; "
                "exactly one is allowed"
            )
        return ConstrainNormState(
            direction_state=direction_state,
            count=jnp.zeros([], jnp.int32),
            diagnostics=NormConstraintDiagnostics(
                norm_factor=jnp.ones([], acc),
                num_constrained=jnp.zeros([], jnp.int32),
            ),
        )

    def update_fn(
        updates: PyTree,
        state: ConstrainNormState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ConstrainNormState]:
        updates, direction_state = inner.update(
            updates, state.direction_state, params, **extra_args
        )
        (nlcg_state,) = _nlcg_states(direction_state)
        acc = state.diagnostics.norm_factor.dtype
        square = jnp.sum(
            nlcg_state.d_d if norm == "euclidean" else -nlcg_state.d_g_prev
        ).astype(acc)
        bound = max_norm(state.count) if callable(max_norm) else max_norm
        length = jnp.sqrt(jnp.maximum(square, 0))
        bound = jnp.asarray(bound).astype(acc)
        too_long = length > bound
        factor = jnp.where(too_long, bound / jnp.where(too_long, length, 1), 1)
        shortened = jax.tree.map(lambda u: times(factor, u), updates)
        return optax.tree.cast_like(shortened, updates), ConstrainNormState(
            direction_state=direction_state,
            count=optax.safe_increment(state.count),
            diagnostics=NormConstraintDiagnostics(
                norm_factor=factor,
                num_constrained=state.diagnostics.num_constrained
                + too_long.astype(jnp.int32),
            ),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _nlcg_states(state: PyTree) -> list[ScaleByNlcgState]:
    def is_nlcg(node: Any) -> bool:
        return isinstance(node, ScaleByNlcgState)

    return [node for node in jax.tree.leaves(state, is_leaf=is_nlcg) if is_nlcg(node)]
