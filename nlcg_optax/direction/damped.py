"""Directions whose length does not depend on how long their memory is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.direction.state import ScaleByNlcgState
from nlcg_optax.dtypes import PyTree, times
from nlcg_optax.wrappers.not_schedules import not_schedules

LEAST_FACTOR = 0.01  # that of β = .99: a memory of a hundred steps


@not_schedules("mask")
def damp_by_beta(
    direction: optax.GradientTransformation,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies conjugate directions by :math:`1 - \beta`, at least by 0.01.

    :math:`d_t = -z_t + \beta d_{t-1}` sums up to :math:`-z / (1 - \beta)` where z and β
    hardly change. The damped direction,

    .. math:: \max(1 - \bar\beta_t, 0.01)\, d_t,

    has the length of z at every β, like the exponential average of a gradient, so the
    learning rate need not follow β. Here :math:`\bar\beta_t` is the average of β that
    `scale_by_nlcg` keeps with ``beta_smoothing``; at a restart it is not reset. The
    bound of 0.01 keeps a β of one, which ``"fr"`` and ``"pr+"`` reach by default, from
    stopping the run, and a larger one from flipping the sign.

    If the direction is orthogonalized next, its length does not matter: leave its
    matrices out with ``mask``.

    Args:
      direction: a `scale_by_nlcg`, with β below one (``beta_max``).
      mask: which leaves to damp, as a tree of booleans like the parameters or a
        function from the parameters to one. None for all.

    Returns:
      The transformation, with the state of ``direction`` itself.

    Raises:
      ValueError: (in ``update``) if ``mask`` does not fit the updates.
      TypeError: if ``direction`` is not a transformation, or (in ``init``) its state
        is not that of `scale_by_nlcg`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nlcg_optax import scale_by_nlcg
      >>> tx = damp_by_beta(scale_by_nlcg(0.5))  # a constant
      >>> grad = jnp.array([4.])
      >>> state = tx.init(grad)
      >>> for _ in range(3):
      ...     update, state = tx.update(grad, state)
      >>> update  # half of 4 + 2 + 1
      Array([3.5], dtype=float32)
    """
    validation.check_transformation("direction", direction)
    inner = optax.with_extra_args_support(direction)

    def init_fn(params: PyTree) -> ScaleByNlcgState:
        state = inner.init(params)
        if not isinstance(state, ScaleByNlcgState):
            raise TypeError(
                f"direction has a state of type {type(state).__name__}; allowed is "
                "that of scale_by_nlcg"
            )
        return state

    def update_fn(
        updates: PyTree,
        state: ScaleByNlcgState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByNlcgState]:
        updates, state = inner.update(updates, state, params, **extra_args)
        chosen = mask(updates) if validation.is_function(mask) else mask
        leaves, treedef = jax.tree.flatten(updates)
        # A flag may stand for a whole subtree, as in `optax.masked`.
        try:
            flags = jax.tree.broadcast(True if chosen is None else chosen, updates)
        except ValueError as error:
            raise ValueError(
                f"mask has the tree structure {jax.tree.structure(chosen)}, which is "
                f"no part from the root of that of the updates, {treedef}"
            ) from error
        flags = jax.tree.leaves(flags)
        factor = jnp.maximum(1 - state.beta_average, LEAST_FACTOR)
        factors = jnp.broadcast_to(factor, (len(leaves),))
        damped = [
            times(factors[i], leaf).astype(leaf.dtype) if flag else leaf
            for i, (flag, leaf) in enumerate(zip(flags, leaves, strict=True))
        ]
        return jax.tree.unflatten(treedef, damped), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
