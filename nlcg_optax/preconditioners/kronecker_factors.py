"""Kronecker factors: blocks of matrices, their second moments and inverse roots."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import times
from nlcg_optax.preconditioners.matrices import MatrixView
from nlcg_optax.trees.split import total_over_parts
from nlcg_optax.xla.eigh import eigh


class Blocks(NamedTuple):
    """How a stack of matrices is cut into blocks, and which sides have a factor.

    Attributes:
      view: the leaf as a stack of matrices.
      rows: number of rows of a block; of the whole matrix if the rows have no factor.
      columns: likewise.
      sides: those of ``"rows"`` and ``"columns"`` that have a factor.
    """

    view: MatrixView
    rows: int
    columns: int
    sides: tuple[str, ...]

    def split(self, leaf: jax.Array) -> jax.Array:
        """``[matrix, row block, column block, rows, columns]``, padded with zeros."""
        count, rows, columns = self.view.shape_of(leaf)
        row_blocks, column_blocks = -(-rows // self.rows), -(-columns // self.columns)
        margins = (
            row_blocks * self.rows - rows,
            column_blocks * self.columns - columns,
        )
        stack = self.view.stack(leaf)
        if any(margins):
            stack = jnp.pad(stack, ((0, 0), (0, margins[0]), (0, margins[1])))
        stack = stack.reshape(count, row_blocks, self.rows, column_blocks, self.columns)
        return jnp.swapaxes(stack, 2, 3)

    def join(self, blocks: jax.Array, leaf: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        count, rows, columns = self.view.shape_of(leaf)
        _, row_blocks, column_blocks, _, _ = blocks.shape
        stack = jnp.swapaxes(blocks, 2, 3).reshape(
            count, row_blocks * self.rows, column_blocks * self.columns
        )
        return self.view.unstack(stack[:, :rows, :columns], leaf)


def blocks_for(
    view: MatrixView, leaf: jax.Array, block_size: int, one_sided_ratio: float
) -> Blocks:
    """How the matrices of a leaf are cut, and which of their sides have a factor."""
    _, rows, columns = view.shape_of(leaf)
    if rows > one_sided_ratio * columns:
        return Blocks(view, rows, _block(columns, block_size), ("columns",))
    if columns > one_sided_ratio * rows:
        return Blocks(view, _block(rows, block_size), columns, ("rows",))
    return Blocks(
        view, _block(rows, block_size), _block(columns, block_size), ("rows", "columns")
    )


def _block(size: int, limit: int) -> int:
    """The size of the fewest equal blocks; an empty side counts as one."""
    return -(-max(size, 1) // -(-max(size, 1) // limit))


def gram(blocks: jax.Array, side: str) -> jax.Array:
    """``G Gᴴ`` for the rows, ``Gᴴ G`` for the columns."""
    conjugate = jnp.conj(jnp.swapaxes(blocks, -1, -2))
    pair = (blocks, conjugate) if side == "rows" else (conjugate, blocks)
    return jnp.matmul(*pair, precision=jax.lax.Precision.HIGHEST)


def multiplied(
    blocks: jax.Array, roots: list[jax.Array], sides: tuple[str, ...]
) -> jax.Array:
    """Blocks times the roots of their sides, ``L G R``."""
    for root, side in zip(roots, sides, strict=True):
        pair = (root, blocks) if side == "rows" else (blocks, root)
        blocks = jnp.matmul(*pair, precision=jax.lax.Precision.HIGHEST)
    return blocks


def _averaged(
    old: jax.Array, new: jax.Array, decay: float | jax.Array, finite: jax.Array
) -> jax.Array:
    """One step of an exponential average; the old one where ``finite`` is False."""
    weight = jnp.asarray(decay).astype(jnp.finfo(old.dtype).dtype)
    return jnp.where(finite, times(weight, old) + times(1 - weight, new), old)


def averaged_factors(
    blocks: list[Blocks | None],
    split: list[jax.Array | None],
    old_factors: list[list[jax.Array]],
    decay: float | jax.Array,
    finite: jax.Array,
) -> list[list[jax.Array]]:
    """The averages including the factors of this gradient, per leaf and per side."""
    return [
        [
            _averaged(old, gram(cut, side), decay, finite)
            for old, side in zip(old_of_leaf, found.sides, strict=True)
        ]
        if found is not None and cut is not None
        else []
        for found, cut, old_of_leaf in zip(blocks, split, old_factors, strict=True)
    ]


def refreshed_roots(
    factors: list[list[jax.Array]],
    old_roots: list[list[jax.Array]],
    count: jax.Array,
    decay: float | jax.Array,
    damping: float | jax.Array,
    finite: jax.Array,
) -> tuple[list[list[jax.Array]], jax.Array]:
    """The inverse roots of all factors, and how many of them were refused.

    If the gradient was not finite, the old roots stay.
    """
    failures = jnp.zeros([], jnp.int32)
    roots: list[list[jax.Array]] = []
    for of_leaf, old_of_leaf in zip(factors, old_roots, strict=True):
        roots.append([])
        for factor, old in zip(of_leaf, old_of_leaf, strict=True):
            real = jnp.finfo(factor.dtype).dtype
            correction = 1 - jnp.asarray(decay).astype(real) ** count.astype(real)
            root = inverse_root(
                times(1 / correction, factor), 2 * len(of_leaf), damping
            )
            good = jnp.all(jnp.isfinite(root))
            roots[-1].append(jnp.where(finite & good, root, old))
            failures += (finite & ~good).astype(jnp.int32)
    return roots, total_over_parts(failures)


def inverse_root(
    matrix: jax.Array, order: int, damping: float | jax.Array
) -> jax.Array:
    r"""Computes :math:`(A + \epsilon \lambda_{max} I)^{-1/p}` of a Hermitian matrix.

    Eigenvalues are raised to at least the rounding of the decomposition, a unit
    roundoff times the size times :math:`\lambda_{max}`. A matrix of zeros gives the
    identity.

    Args:
      matrix: positive semidefinite, ``[..., size, size]``.
      order: the p above.
      damping: the :math:`\epsilon` above.

    Returns:
      Like ``matrix``.

    Examples:
      >>> import jax.numpy as jnp
      >>> inverse_root(jnp.diag(jnp.array([16., 1.])), 4, 0.)
      Array([[0.5, 0. ],
             [0. , 1. ]], dtype=float32)
    """
    values, vectors = eigh(matrix)
    largest = values[..., -1:]
    rounding = matrix.shape[-1] * float(jnp.finfo(values.dtype).eps)
    offset = jnp.asarray(damping).astype(values.dtype)
    values = jnp.maximum(values, rounding * largest) + offset * largest
    powers = jnp.where(largest > 0, values, 1) ** (-1.0 / order)
    scaled = vectors * powers[..., None, :].astype(vectors.dtype)
    return jnp.matmul(
        scaled,
        jnp.conj(jnp.swapaxes(vectors, -1, -2)),
        precision=jax.lax.Precision.HIGHEST,
    )
