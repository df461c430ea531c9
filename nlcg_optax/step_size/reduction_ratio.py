"""How well a quadratic model predicts a change of the loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, compute_dtype

ROUNDINGS = 16  # units of rounding by which two equal losses may differ


class ReductionRatio(NamedTuple):
    """Achieved over predicted reduction of a loss.

    Attributes:
      ratio: one where the model is exact; minus infinity where the new loss is not
        finite.
      meaningful: whether the predicted reduction exceeds the rounding of the loss.
    """

    ratio: jax.Array
    meaningful: jax.Array


def reduction_ratio(
    value: jax.Array, new_value: jax.Array, predicted: jax.Array
) -> ReductionRatio:
    """Compares the reduction ``value - new_value`` with the predicted one.

    Args:
      value: the loss before the step, a scalar.
      new_value: the loss after it.
      predicted: the reduction that the model predicts.

    Returns:
      The `ReductionRatio`.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = reduction_ratio(jnp.float32(3.), jnp.float32(2.), jnp.float32(2.))
      >>> float(found.ratio), bool(found.meaningful)
      (0.5, True)
    """
    rounding = ROUNDINGS * jnp.finfo(value.dtype).eps * jnp.abs(value)
    meaningful = predicted > rounding
    ratio = (value - new_value) / jnp.where(meaningful, predicted, 1)
    return ReductionRatio(
        jnp.where(jnp.isfinite(ratio), ratio, -jnp.inf),
        meaningful | ~jnp.isfinite(new_value),
    )


def params_after(params: PyTree, step: PyTree) -> PyTree:
    """The parameters minus a step, in their own dtypes.

    Examples:
      >>> import jax.numpy as jnp
      >>> params_after(jnp.array([3., 1.]), jnp.array([1., 1.]))
      Array([2., 0.], dtype=float32)
    """

    def minus(param: jax.Array, change: jax.Array) -> jax.Array:
        dtype = compute_dtype(param.dtype)
        return (param.astype(dtype) - change.astype(dtype)).astype(param.dtype)

    return jax.tree.map(minus, params, step)
