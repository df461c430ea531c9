"""Products with many trees at once, stacked along a leading axis.

As in `inner_products`, a leaf keeps its shape, and with it its sharding.
"""

import functools

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, accumulator_dtype, compute_dtype, promote
from nlcg_optax.trees.split import total_over_parts
from nlcg_optax.xla.automatic_sharding import explicit_mesh

# Up to this many elements a sum is no slower than a matrix product, and compiles
# faster.
SMALL_LEAF = 128


def combination(coefficients: jax.Array, stack: PyTree) -> PyTree:
    r"""Computes a linear combination of m stacked trees.

    Args:
      coefficients: a real vector of shape ``(m,)``.
      stack: a tree of real or complex arrays with a leading axis of length m.

    Returns:
      The tree :math:`\sum_i c_i\, \mathrm{stack}_i`, in the `compute_dtype` of its
      leaves.

    Examples:
      >>> import jax.numpy as jnp
      >>> combination(jnp.array([2., 1.]), jnp.array([[1., 0.], [1., 2.]]))
      Array([3., 2.], dtype=float32)
    """

    def leaf_sum(rows: jax.Array) -> jax.Array:
        dtype = compute_dtype(rows.dtype)
        c, rows = coefficients.astype(dtype), rows.astype(dtype)
        if rows.size <= SMALL_LEAF * len(rows):
            return jnp.sum(jnp.expand_dims(c, range(1, rows.ndim)) * rows, axis=0)
        return jnp.tensordot(c, rows, axes=1, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.map(leaf_sum, stack)


def stacked_vdots(stack: PyTree, tree: PyTree, *, count: int = 0) -> jax.Array:
    r"""Computes the real inner products of m stacked trees with one tree.

    Args:
      stack: a tree whose leaves have one more axis than those of ``tree``, in front.
      tree: a tree of real or complex arrays.
      count: m, which a stack without leaves does not show.

    Returns:
      A vector of shape ``(m,)`` in the dtype of `accumulator_dtype`; element i is
      :math:`\langle \mathrm{stack}_i, \mathrm{tree}\rangle`.

    Raises:
      TypeError: if a leaf is not a real or complex floating-point array.

    Examples:
      >>> import jax.numpy as jnp
      >>> stacked_vdots(jnp.array([[1., 0.], [1., 2.]]), jnp.array([3., 4.]))
      Array([ 3., 11.], dtype=float32)
    """
    acc = accumulator_dtype(tree)

    def leaf_products(rows: jax.Array, leaf: jax.Array) -> jax.Array:
        wide = promote(compute_dtype(rows.dtype, leaf.dtype), acc)
        axes = tuple(range(leaf.ndim))
        row_axes = tuple(a + 1 for a in axes)
        if leaf.size <= SMALL_LEAF:
            product = jnp.real(jnp.conj(rows).astype(wide) * leaf.astype(wide)[None])
            return jnp.sum(product, axis=row_axes, dtype=acc)
        # No ravel: a flattened leaf would lose its sharding.
        out = jax.lax.dot_general(
            jnp.conj(rows).astype(wide),
            leaf.astype(wide),
            ((row_axes, axes), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=wide,
            out_sharding=_replicated_if_explicit(leaf),
        )
        return jnp.real(out).astype(acc)

    products = jax.tree.leaves(jax.tree.map(leaf_products, stack, tree))
    total = functools.reduce(jnp.add, products or [jnp.zeros([count], acc)])
    return total_over_parts(total)


def _replicated_if_explicit(leaf: jax.Array) -> jax.NamedSharding | None:
    # Under explicit sharding a contraction over a sharded axis must say where its
    # result lives; elsewhere it must not.
    mesh = explicit_mesh(leaf)
    return None if mesh is None else jax.NamedSharding(mesh, jax.P())
