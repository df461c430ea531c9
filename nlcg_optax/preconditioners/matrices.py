"""Parameters seen as matrices, for the preconditioners that act on matrices."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import (
    PyTree,
    compute_dtype,
    times,
    with_standard_promotion,
)
from nlcg_optax.trees.inner_products import max_abs, vdots
from nlcg_optax.trees.split import on_all_parts, parameters_split_over

DimensionNumbers: TypeAlias = optax.contrib.MuonDimensionNumbers


class MatrixView(NamedTuple):
    """A leaf as a stack of matrices ``[batch, rows, columns]``.

    Attributes:
      batch: axes of the leaf that number the matrices.
      rows: axes that make up the rows; in a layer, the inputs.
      columns: axes that make up the columns; the outputs.
    """

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def _axes(self) -> tuple[int, ...]:
        return self.batch + self.rows + self.columns

    def shape_of(self, leaf: jax.Array) -> tuple[int, int, int]:
        """The shape of the stack."""
        count, rows, columns = (
            math.prod(leaf.shape[axis] for axis in axes) for axes in self
        )
        return count, rows, columns

    def stack(self, leaf: jax.Array) -> jax.Array:
        """The stack of matrices of a leaf."""
        return jnp.transpose(leaf, self._axes).reshape(self.shape_of(leaf))

    def unstack(self, matrices: jax.Array, leaf: jax.Array) -> jax.Array:
        """The inverse of `stack`, in the shape of ``leaf``."""
        shape = tuple(leaf.shape[axis] for axis in self._axes)
        order = sorted(range(leaf.ndim), key=self._axes.__getitem__)
        return jnp.transpose(matrices.reshape(shape), order)


def input_output_axes(leaf: jax.Array) -> DimensionNumbers | None:
    """Inputs by outputs: all axes but the last are rows; None below two axes.

    The kernel of a convolution in Flax's layout, height by width by inputs by outputs,
    is one matrix with a row per position and input channel.

    Examples:
      >>> import jax.numpy as jnp
      >>> tuple(input_output_axes(jnp.zeros([3, 3, 16, 32])))
      ((0, 1, 2), 3)
    """
    if leaf.ndim < 2:
        return None
    return DimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)


def matrix_views(
    tree: PyTree, dimension_numbers: PyTree | Callable[[PyTree], PyTree] | None
) -> list[MatrixView | None]:
    """The view of every leaf, in the order of ``jax.tree.leaves``; None for a vector.

    Args:
      tree: arrays, or anything with shapes.
      dimension_numbers: as ``muon_weight_dimension_numbers`` of
        ``optax.contrib.muon``: a tree with an ``optax.contrib.MuonDimensionNumbers`` or
        None in place of each leaf, or a function from the tree to one; None for
        `input_output_axes`.

    Raises:
      TypeError: if an entry is something else.
      ValueError: if the two trees differ in their structure, or axes do not exist or
        are given twice.
    """
    if callable(dimension_numbers):
        dimension_numbers = dimension_numbers(tree)
    # A tree for the whole model also works for a part of it, with the rest masked.
    treedef: Any
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_masked)
    if dimension_numbers is None:
        numbers = [None if _is_masked(x) else input_output_axes(x) for _, x in leaves]
    else:
        try:
            numbers = treedef.flatten_up_to(dimension_numbers)
        except ValueError as error:
            raise ValueError(
                "weight_dimension_numbers differs in its structure from the parameters "
                f"({error}); each leaf needs MuonDimensionNumbers or None"
            ) from error
    return [
        _view(jax.tree_util.keystr(path), leaf, number)
        for (path, leaf), number in zip(leaves, numbers, strict=True)
        if not _is_masked(leaf)
    ]


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _view(name: str, leaf: jax.Array, numbers: Any) -> MatrixView | None:
    if numbers is None:
        return None
    if not hasattr(numbers, "reduction_axis"):
        raise TypeError(
            f"weight_dimension_numbers{name}={numbers!r} is a "
            f"{type(numbers).__name__}; allowed are optax.contrib.MuonDimensionNumbers "
            "and None"
        )
    rows, columns = (
        (axes,) if isinstance(axes, int) else tuple(axes)
        for axes in (numbers.reduction_axis, numbers.output_axis)
    )
    if not all(-leaf.ndim <= axis < leaf.ndim for axis in rows + columns):
        raise ValueError(
            f"weight_dimension_numbers{name}={numbers!r} names an axis that shape "
            f"{leaf.shape} does not have"
        )
    rows = tuple(axis % leaf.ndim for axis in rows)
    columns = tuple(axis % leaf.ndim for axis in columns)
    if len({*rows, *columns}) != len(rows + columns) or not (rows and columns):
        raise ValueError(
            f"weight_dimension_numbers{name}={numbers!r} must name at least one axis "
            "for the rows and one for the columns, and none twice"
        )
    batch = tuple(a for a in range(leaf.ndim) if a not in rows + columns)
    return MatrixView(batch, rows, columns)


def vector_mask(
    dimension_numbers: PyTree | Callable[[PyTree], PyTree] | None,
) -> Callable[[PyTree], PyTree]:
    """A function from a tree to a tree of booleans: which leaves are not matrices."""

    def mask(tree: PyTree) -> PyTree:
        views = matrix_views(tree, dimension_numbers)
        return jax.tree.unflatten(jax.tree.structure(tree), [v is None for v in views])

    return mask


def second_moment() -> optax.GradientTransformation:
    """The default divisor of vectors: the second moment of Adam."""
    return with_standard_promotion(
        optax.scale_by_rms(0.999, eps_in_sqrt=False, bias_correction=True)
    )


def widened(leaf: jax.Array) -> jax.Array:
    """The leaf in at least float32."""
    return leaf.astype(compute_dtype(leaf.dtype))


def of_norm(leaf: jax.Array, model: jax.Array) -> jax.Array:
    """The leaf scaled to the Frobenius norm of another one; zero stays zero."""
    # The part of a matrix on a device counts as a separate matrix.
    with parameters_split_over(None):
        own, wanted = vdots([(leaf, leaf), (model, model)])
    return times(jnp.sqrt(wanted / jnp.where(own == 0, 1, own)), leaf)


def scaled_to_one(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The leaf over its size (so that no square over- or underflows), and the size.

    The size is the largest absolute entry, or 1 if the inverse of that may be infinite.
    """
    with parameters_split_over(None):
        largest = max_abs(leaf)
    size = jnp.where(largest < jnp.finfo(largest.dtype).tiny, 1, largest)
    return times(1 / size, leaf), size


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every entry of a tree is finite, on all devices that hold its parts."""
    flags = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return on_all_parts(functools.reduce(jnp.logical_and, flags, jnp.ones([], bool)))
