"""The last directions, and whether a gradient lies in their span."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, compute_dtype, stored, times
from nlcg_optax.trees.stacked_products import stacked_vdots

STALLED_DISTANCE = 0.01  # of z from the span of the last directions, relative to |z|


class RecentDirections(NamedTuple):
    r"""The last m directions, as :math:`e_i = P^{-1} d_i`.

    With the identity as P these are the directions themselves. With another P they
    follow from :math:`e_t = -g_t + \beta_t e_{t-1}`, without an inverse.

    Attributes:
      newest: slot of the newest direction in the circular memory.
      duals: the e_i, stacked along a leading axis of length m, zero in empty slots.
      gram: ``e_iᵀP e_j``, shape ``(m, m)``; zero in the rows of empty slots.
    """

    newest: jax.Array
    duals: PyTree
    gram: jax.Array


def none_yet(like: PyTree, memory: int, dtype: jnp.dtype) -> RecentDirections:
    """The memory before the first direction.

    Args:
      like: a tree of arrays in the dtype in which directions are stored.
      memory: m.
      dtype: dtype of the inner products.

    Returns:
      An empty memory.

    Examples:
      >>> import jax.numpy as jnp
      >>> none_yet(jnp.zeros(3), 2, jnp.float32).duals.shape
      (2, 3)
    """

    def stack(x: jax.Array) -> jax.Array:
        # Computed from x, so that every row is sharded like it.
        return jnp.broadcast_to(jnp.zeros_like(x), (memory, *jnp.shape(x)))

    return RecentDirections(
        newest=jnp.zeros([], jnp.int32),
        duals=jax.tree.map(stack, like),
        gram=jnp.zeros([memory, memory], dtype),
    )


def products_with(
    recent: RecentDirections,
    z: PyTree,
) -> jax.Array:
    """``e_iᵀz``, which is ``d_iᵀg`` for a symmetric P; shape ``(m,)``."""
    products = stacked_vdots(recent.duals, z, count=len(recent.gram))
    return products.astype(recent.gram.dtype)


def share_within(
    recent: RecentDirections, products: jax.Array, g_z: jax.Array
) -> jax.Array:
    r"""The share of the gradient in the span of the last directions, in [0, 1].

    .. math:: \max_{d \in \mathrm{span}} \frac{(g^\top d)^2}{d^\top P^{-1} d\; g^\top z}
        = \frac{b^\top W^{-1} b}{g^\top z}, \qquad
        b_i = d_i^\top g, \quad W_{ij} = d_i^\top P^{-1} d_j,

    the square of the cosine between z and its projection onto the span in the norm of
    P⁻¹. It is zero while directions are conjugate and steps are exact. One means that
    steepest descent would search the same subspace again. Hager and Zhang, "The limited
    memory conjugate gradient method", SIAM J. Optim. 23, 2013, measure the distance to
    the subspace in the Euclidean norm.

    Args:
      recent: the last directions.
      products: from `products_with`.
      g_z: ``gᵀz``.

    Returns:
      A scalar; zero if there is no direction yet.

    Examples:
      >>> import jax.numpy as jnp
      >>> recent = RecentDirections(
      ...     jnp.int32(0), jnp.array([[2., 0., 0.]]), jnp.array([[4.]]))
      >>> g = jnp.array([3., 4., 0.])
      >>> share = share_within(recent, products_with(recent, g), jnp.sum(g * g))
      >>> bool(jnp.isclose(share, 0.36, rtol=1e-5))
      True
    """
    squares = jnp.diag(recent.gram)
    is_empty = ~(squares > 0)
    scale = jnp.where(is_empty, 0, jax.lax.rsqrt(jnp.where(is_empty, 1, squares)))
    ridge = squares.size * jnp.finfo(squares.dtype).eps
    cosines = recent.gram * scale[:, None] * scale[None, :]
    cosines += jnp.diag(jnp.where(is_empty, 1, ridge))
    b = products * scale
    share = _inverse_form(cosines, b) / jnp.where(g_z > 0, g_z, jnp.inf)
    return jnp.where(jnp.isfinite(share), jnp.clip(share, 0, 1), 0)


@functools.partial(jax.jit, inline=True)
def _inverse_form(matrix: jax.Array, b: jax.Array) -> jax.Array:
    """``bᵀ matrix⁻¹ b``; NaN unless the matrix is positive definite.

    It is minus the Schur complement of ``matrix`` in ``[[matrix, b], [bᵀ, 0]]``.
    LAPACK's Cholesky decomposition would hang under `vmap` for the reason given at
    `nlcg_optax.xla.eigh`.
    """
    bordered = jnp.pad(matrix, (0, 1)).at[-1, :-1].set(b).at[:-1, -1].set(b)
    return -jax.lax.fori_loop(0, b.size, _eliminated, bordered)[-1, -1]


def _eliminated(k: jax.Array, matrix: jax.Array) -> jax.Array:
    column = jax.lax.dynamic_index_in_dim(matrix, k, axis=1, keepdims=False)
    pivot = jax.lax.dynamic_index_in_dim(column, k, keepdims=False)
    scaled = column / jnp.where(pivot > 0, pivot, jnp.nan)
    return matrix - column[:, None] * scaled[None, :]


def is_stalled(
    recent: RecentDirections, g: PyTree, products: jax.Array, g_z: jax.Array
) -> jax.Array:
    """Whether the gradient lies, to within 1 %, in the span of the last directions.

    Always False if there are no more parameters than directions in memory: their span
    is soon the whole space.

    Args:
      recent: the last directions.
      g: the gradient.
      products: from `products_with`.
      g_z: ``gᵀz``.

    Returns:
      A boolean scalar.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(g))
    share = share_within(recent, products, g_z)
    return (share >= 1 - STALLED_DISTANCE**2) & (size > products.size)


def remember(
    recent: RecentDirections,
    g: PyTree,
    beta: jax.Array,
    products: jax.Array,
    d_pinv_d: jax.Array,
    restarted: jax.Array,
    taken: jax.Array,
) -> RecentDirections:
    """Stores the direction ``d = -z + beta d_prev`` in place of the oldest.

    A restart empties the memory first: only the span since the restart is tested.

    Args:
      recent: the memory before this direction.
      g: the gradient.
      beta: the coefficient, a scalar.
      products: from `products_with`.
      d_pinv_d: ``dᵀP⁻¹d`` of the new direction.
      restarted: whether beta was set to zero.
      taken: whether the step is taken; otherwise nothing changes.

    Returns:
      The new memory.
    """
    memory = products.size
    old, slot = recent.newest, (recent.newest + 1) % memory
    column = beta * recent.gram[old] - products
    is_slot = jnp.arange(memory, dtype=jnp.int32) == slot
    column = jnp.where(is_slot, d_pinv_d, column)
    column = jnp.where(restarted & ~is_slot, 0, column)
    gram = jnp.where(restarted, 0, recent.gram)
    gram = jnp.where(is_slot[:, None], column[None, :], gram)
    gram = jnp.where(is_slot[None, :], column[:, None], gram)

    def write(rows: jax.Array, g_: jax.Array) -> jax.Array:
        dtype = compute_dtype(rows.dtype)
        previous = jax.lax.dynamic_index_in_dim(rows, old, keepdims=False)
        kept = jax.lax.dynamic_index_in_dim(rows, slot, keepdims=False)
        new = times(beta, previous.astype(dtype)) - g_.astype(dtype)
        row = jnp.where(taken, stored(new, rows.dtype), kept)
        return jax.lax.dynamic_update_index_in_dim(rows, row, slot, 0)

    return RecentDirections(
        newest=jnp.where(taken, slot, old),
        duals=jax.tree.map(write, recent.duals, g),
        gram=jnp.where(taken, gram, recent.gram),
    )
