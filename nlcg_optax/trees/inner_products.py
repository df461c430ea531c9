"""Inner products of parameter trees; with `stacked_products`, all their reductions.

Every reduction is ``sum(x * y)`` leaf by leaf, in float32 or wider, and never a
concatenation: on a sharded mesh only scalars are communicated.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, accumulator_dtype, promote
from nlcg_optax.trees.split import axis_of_parameters, total_over_parts
from nlcg_optax.xla.joint_reductions import Reducer, larger, reductions

Scope: TypeAlias = Literal["global", "per_leaf"]

SCOPES = ("global", "per_leaf")


def vdots(
    pairs: Sequence[tuple[PyTree, PyTree]],
    *,
    scope: Scope = "global",
    dtype: Any = None,
) -> list[jax.Array]:
    r"""Computes several real inner products of trees at once.

    .. math:: \langle x, y\rangle = \sum_i \mathrm{Re}(\bar x_i y_i)

    Args:
      pairs: pairs ``(x, y)`` of trees of one structure and equal shapes. ``None`` and
        ``optax.MaskedNode`` leaves are left out of the sum.
      scope: ``"global"`` for one scalar per pair, over all leaves together;
        ``"per_leaf"`` for a vector, one entry per leaf, in ``jax.tree.leaves`` order.
      dtype: real dtype of the accumulation; by default that of `accumulator_dtype`.

    Returns:
      One array per pair, of shape ``()`` or ``(number of leaves,)``.

    Raises:
      TypeError: if a leaf is not a real or complex floating-point array.
      ValueError: if the two trees of a pair differ in structure or a shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> x = {"w": jnp.array([1., 2.]), "b": jnp.array([3.])}
      >>> vdots([(x, x)])
      [Array(14., dtype=float32)]
      >>> vdots([(x, x)], scope="per_leaf")  # leaves in order: b, w
      [Array([9., 5.], dtype=float32)]
    """
    if scope == "global":
        return products_and_maxima(pairs, [], dtype=dtype)[0]
    dtype = _common_dtype(pairs) if dtype is None else dtype
    sums = [
        [jnp.sum(leaf, dtype=dtype) for leaf in leaves]
        for leaves in _products_by_leaf(pairs, dtype)
    ]
    products = [jnp.stack(x) if x else jnp.zeros([0], dtype) for x in sums]
    axis_name = axis_of_parameters()
    if axis_name is not None:
        products = list(jax.lax.psum(jnp.stack(products), axis_name))
    return products


def products_and_maxima(
    pairs: Sequence[tuple[PyTree, PyTree]],
    trees: Sequence[PyTree],
    *,
    dtype: Any = None,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Computes several inner products and largest absolute values, in one sweep.

    Args:
      pairs: see `vdots`.
      trees: trees of real or complex arrays. If their leaves have the shapes of those
        of ``pairs``, a single CPU reads shared arrays once.
      dtype: see `vdots`.

    Returns:
      The products of the pairs, and for each tree its largest absolute value: zero if
      it has no element, NaN if any element is NaN.

    Raises:
      TypeError, ValueError: see `vdots`.

    Examples:
      >>> import jax.numpy as jnp
      >>> x = {"w": jnp.array([1., -3.]), "b": jnp.array([2.])}
      >>> products_and_maxima([(x, x)], [x])
      ([Array(14., dtype=float32)], [Array(3., dtype=float32)])
    """
    dtype = _common_dtype([*pairs, tuple(trees)]) if dtype is None else dtype
    sizes = [[jnp.abs(x).astype(dtype) for x in jax.tree.leaves(t)] for t in trees]
    reducers: list[Reducer] = [jax.lax.add] * len(pairs) + [larger] * len(trees)
    values = reductions([*_products_by_leaf(pairs, dtype), *sizes], reducers, dtype)
    products, maxima = values[: len(pairs)], values[len(pairs) :]
    axis_name = axis_of_parameters()
    if axis_name is None or not values:
        return products, maxima
    # A maximum may lose NaN, also between devices.
    unknown = [jnp.isnan(x).astype(dtype) for x in maxima]
    sums = jax.lax.psum(jnp.stack([*products, *unknown]), axis_name)
    if maxima:
        whole = jax.lax.pmax(jnp.stack(maxima), axis_name)
        maxima = list(jnp.where(sums[len(pairs) :] > 0, jnp.nan, whole))
    return list(sums[: len(pairs)]), maxima


def named_vdots(
    pairs: Mapping[str, tuple[PyTree, PyTree]], **options: Any
) -> dict[str, jax.Array]:
    """Computes several real inner products that have names.

    Args:
      pairs: pairs of trees by name.
      **options: those of `vdots`.

    Returns:
      The products by name.

    Raises:
      TypeError, ValueError: see `vdots`.

    Examples:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([1., 2.])
      >>> named_vdots({"x_x": (x, x)})
      {'x_x': Array(5., dtype=float32)}
    """
    values = vdots(list(pairs.values()), **options)
    return dict(zip(pairs, values, strict=True))


def _common_dtype(trees: Sequence[tuple[PyTree, ...]]) -> jnp.dtype:
    return promote(*(accumulator_dtype(tree) for group in trees for tree in group))


def _products_by_leaf(
    pairs: Sequence[tuple[PyTree, PyTree]], dtype: jnp.dtype
) -> list[list[jax.Array]]:
    return [
        jax.tree.leaves(jax.tree.map(lambda a, b: _leaf_products(a, b, dtype), x, y))
        for x, y in pairs
    ]


def _leaf_products(x: jax.Array, y: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Real parts of the elementwise products of conjugate x and y."""
    if jnp.shape(x) != jnp.shape(y):
        raise ValueError(
            f"the two sides of an inner product differ in shape: {jnp.shape(x)} and "
            f"{jnp.shape(y)}"
        )
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        real, imag = (
            jnp.real(x).astype(dtype) * jnp.real(y).astype(dtype),
            jnp.imag(x).astype(dtype) * jnp.imag(y).astype(dtype),
        )
        return real + imag
    return jnp.asarray(x, dtype) * jnp.asarray(y, dtype)


def max_abs(tree: PyTree) -> jax.Array:
    """Returns the largest absolute value in a tree; NaN if any is.

    Examples:
      >>> import jax.numpy as jnp
      >>> max_abs({"w": jnp.array([1., -3.]), "b": jnp.array(2.)})
      Array(3., dtype=float32)
    """
    return products_and_maxima([], [tree])[1][0]


def mean(tree: PyTree) -> jax.Array:
    """Returns the mean of all elements of a tree of real arrays; zero if it has none.

    Args:
      tree: a tree of real floating-point arrays.

    Returns:
      A scalar in the dtype of `accumulator_dtype`, not finite if an element is not.

    Examples:
      >>> import jax.numpy as jnp
      >>> mean({"w": jnp.array([1., 2.]), "b": jnp.array(6.)})
      Array(3., dtype=float32)
    """
    acc = accumulator_dtype(tree)
    leaves = jax.tree.leaves(tree)
    sums = [jnp.sum(leaf, dtype=acc) for leaf in leaves]
    total = functools.reduce(jnp.add, sums, jnp.zeros([], acc))
    count = jnp.asarray(sum(leaf.size for leaf in leaves), acc)
    total, count = total_over_parts((total, count))
    return total / jnp.maximum(count, 1)
