"""Division of a gradient by a diagonal estimate of the curvature."""

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, compute_dtype, stored


def divide_by_diagonal(
    grad: PyTree,
    diagonal: PyTree,
    offset: float | jax.Array,
    *,
    active: jax.Array | PyTree,
    power: float | jax.Array = 1.0,
) -> PyTree:
    r"""Computes :math:`g / (h + \mathrm{offset})^{\mathrm{power}}`, elementwise.

    It multiplies by the reciprocal in float32 or wider, then casts to the dtypes of
    ``grad``, clipped to their range.

    Args:
      grad: a tree g.
      diagonal: a tree h of real numbers that are not negative.
      offset: added to h.
      active: whether to divide, as one scalar or a tree of one scalar per leaf; where
        it is False, g itself is returned.
      power: power of the sum.

    Returns:
      A tree like ``grad``. Where ``h + offset`` is zero, or so small that its
      reciprocal overflows, it holds the element of g.

    Examples:
      >>> import jax.numpy as jnp
      >>> divide_by_diagonal(jnp.array([6., 6., 6.]), jnp.array([2., 4., 0.]), 0.,
      ...                    active=jnp.array(True))
      Array([3. , 1.5, 6. ], dtype=float32)
    """

    def divided(g: jax.Array, h: jax.Array, active: jax.Array) -> jax.Array:
        wide = g.astype(compute_dtype(g.dtype))
        scale = h.astype(compute_dtype(h.dtype))
        scale = scale + jnp.asarray(offset).astype(scale.dtype)
        if not isinstance(power, float) or power != 1.0:
            scale = scale ** jnp.asarray(power).astype(scale.dtype)
        usable = active & (scale > 0)
        scale = jnp.where(usable, scale, 1).astype(jnp.finfo(wide.dtype).dtype)
        # A reciprocal, not a quotient, so that only h is read for it.
        reciprocal = 1 / scale
        reciprocal = jnp.where(jnp.isfinite(reciprocal), reciprocal, 1)
        quotient = wide * reciprocal.astype(wide.dtype)
        return stored(quotient, g.dtype)

    if jax.tree_util.all_leaves([active]):  # a NumPy boolean after a restore
        flag = active
        active = jax.tree.map(lambda _: flag, grad)
    return jax.tree.map(divided, grad, diagonal, active)


def abs_squared(x: jax.Array) -> jax.Array:
    """Computes ``|x|²`` elementwise, in float32 or wider.

    Examples:
      >>> import jax.numpy as jnp
      >>> abs_squared(jnp.array([3. + 4.j]))
      Array([25.], dtype=float32)
    """
    if jnp.iscomplexobj(x):
        return jnp.real(x) ** 2 + jnp.imag(x) ** 2
    return x.astype(compute_dtype(x.dtype)) ** 2
