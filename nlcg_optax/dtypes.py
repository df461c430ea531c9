"""The dtypes in which values are computed and stored.

Inner products accumulate in float32 or wider, elementwise work is done in float32 or
wider, and states hold neither weak types (a second compilation) nor implicit
promotions (an error under ``jax.numpy_dtype_promotion("strict")``).
"""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

PyTree: TypeAlias = Any


def promote(*dtypes: Any) -> jnp.dtype:
    """Returns the standard promotion of dtypes, in the strict mode of JAX as well.

    Examples:
      >>> import jax.numpy as jnp
      >>> promote(jnp.bfloat16, jnp.float16)
      dtype('float32')
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(functools.reduce(jnp.promote_types, dtypes))


def with_standard_promotion(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns ``tx`` with JAX's standard promotion of dtypes, in the strict mode too.

    Use it for Optax transformations that mix dtypes internally, as the bias correction
    of ``optax.scale_by_adam`` does.

    Examples:
      >>> tx = with_standard_promotion(optax.scale_by_adam())
      >>> with jax.numpy_dtype_promotion("strict"):
      ...     updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> updates
      Array([0.9999933], dtype=float32)
    """
    inner = optax.with_extra_args_support(tx)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def accumulator_dtype(tree: PyTree) -> jnp.dtype:
    """Returns the real dtype in which inner products over ``tree`` accumulate.

    float32, or float64 as soon as one leaf is float64 or complex128.

    Args:
      tree: a tree of real or complex floating-point arrays.

    Returns:
      A real floating-point dtype.

    Raises:
      TypeError: if a leaf is not a real or complex floating-point array; the message
        names the leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> accumulator_dtype({"w": jnp.zeros(3, jnp.bfloat16)})
      dtype('float32')
    """
    dtype = jnp.dtype(jnp.float32)
    for leaf_dtype in checked_dtypes(tree):
        dtype = promote(dtype, jnp.finfo(leaf_dtype).dtype)
    return dtype


def checked_dtypes(tree: PyTree) -> list[jnp.dtype]:
    """The dtypes of a tree's leaves, or TypeError if one is not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> checked_dtypes({"w": jnp.zeros(3, jnp.bfloat16)})
      [dtype(bfloat16)]
    """
    dtypes = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.asarray(leaf).dtype if jnp.isscalar(leaf) else leaf.dtype
        if not jnp.issubdtype(dtype, jnp.inexact):
            name = jax.tree_util.keystr(path) or "the array itself"
            raise TypeError(
                f"leaf {name} has dtype {dtype}; allowed are real and complex "
                "floating-point dtypes. Keep other leaves out with optax.masked."
            )
        dtypes.append(dtype)
    return dtypes


def compute_dtype(*dtypes: Any) -> jnp.dtype:
    """Returns the dtype of elementwise work: the promotion of all with float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> compute_dtype(jnp.bfloat16), compute_dtype(jnp.complex64)
      (dtype('float32'), dtype('complex64'))
    """
    return promote(jnp.float32, *dtypes)


def difference(x: PyTree, y: PyTree) -> PyTree:
    """Computes ``x - y`` leaf by leaf in at least float32, for use in `vdots`.

    Subtracting before the sum keeps the digits that the difference of two nearly
    equal sums would lose, but the sum takes longer on CPU. Under ``jit`` the
    subtraction fuses into the reduction: no tree is made.

    Examples:
      >>> import jax.numpy as jnp
      >>> difference(jnp.array(2., jnp.bfloat16), jnp.array(1., jnp.float32))
      Array(1., dtype=float32)
    """
    return jax.tree.map(
        lambda a, b: (
            a.astype(compute_dtype(a.dtype, b.dtype))
            - b.astype(compute_dtype(a.dtype, b.dtype))
        ),
        x,
        y,
    )


def times(scale: jax.Array, x: jax.Array) -> jax.Array:
    """Computes ``scale * x`` in at least float32, without implicit promotion.

    Examples:
      >>> import jax.numpy as jnp
      >>> times(jnp.float32(3.), jnp.array([1., 2.], jnp.bfloat16))
      Array([3., 6.], dtype=float32)
    """
    dtype = compute_dtype(x.dtype)
    return scale.astype(dtype) * x.astype(dtype)


def stored(x: jax.Array, dtype: Any) -> jax.Array:
    """Casts x to a dtype; finite numbers are clipped to its range and stay finite.

    Complex numbers are cast without clipping.

    Examples:
      >>> import jax.numpy as jnp
      >>> stored(jnp.array([2., 1e5, jnp.inf]), jnp.float16).tolist()
      [2.0, 65504.0, inf]
    """
    if jnp.iscomplexobj(x) or promote(x.dtype, dtype) == dtype:
        return x.astype(dtype)
    x = x.astype(compute_dtype(x.dtype))
    largest = jnp.finfo(dtype).max.astype(x.dtype)
    held = jnp.clip(x, -largest, largest)
    return jnp.where(jnp.isfinite(x), held, x).astype(dtype)


def stored_like(tree: PyTree, models: PyTree) -> PyTree:
    """Applies `stored` leaf by leaf, with the dtypes of another tree.

    Examples:
      >>> import jax.numpy as jnp
      >>> stored_like([jnp.array(1e5)], [jnp.ones(1, jnp.float16)])[0].item()
      65504.0
    """
    return jax.tree.map(lambda x, model: stored(x, model.dtype), tree, models)


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two nearest to a positive scalar; scaling by it rounds nothing.

    Examples:
      >>> import jax.numpy as jnp
      >>> power_of_two(jnp.float32(5.))
      Array(4., dtype=float32)
    """
    bits = jnp.finfo(x.dtype).nexp
    return jax.lax.reduce_precision(x, exponent_bits=bits, mantissa_bits=0)


def select(flag: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Selects the new state where a flag is true, else the old, in the latter's dtypes.

    The states may hold random keys and Python numbers, on which ``astype`` and
    ``optax.tree.cast_like`` fail.

    Examples:
      >>> import jax.numpy as jnp
      >>> new, old = jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.bfloat16)
      >>> select(jnp.array(True), new, old)
      Array([1], dtype=bfloat16)
    """

    def chosen(leaf: Any, model: Any) -> jax.Array:
        return jnp.where(flag, cast_leaf_like(leaf, model), model)

    return jax.tree.map(chosen, new, old)


def cast_leaf_like(leaf: Any, model: Any) -> Any:
    """Casts a leaf to the dtype of another; random keys and Python numbers stay.

    Examples:
      >>> import jax.numpy as jnp
      >>> cast_leaf_like(jnp.ones(1), jnp.zeros(1, jnp.bfloat16))
      Array([1], dtype=bfloat16)
      >>> cast_leaf_like(1, jnp.zeros(1))
      1
    """
    dtype = getattr(model, "dtype", None)
    if dtype is None or getattr(leaf, "dtype", dtype) == dtype:
        return leaf
    return leaf.astype(dtype)


def strong_types(tree: PyTree) -> PyTree:
    """Returns the tree with every array's dtype made explicit, no longer weak.

    Python numbers become arrays.

    Examples:
      >>> import jax.numpy as jnp
      >>> jnp.asarray(1.).weak_type, strong_types(jnp.asarray(1.)).weak_type
      (True, False)
    """

    def strong(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.asarray(x, x.dtype)

    return jax.tree.map(strong, tree)


def zeros_like(tree: PyTree) -> PyTree:
    """Returns new zeros of the same shapes and dtypes, without weak types.

    Every leaf has its own buffer, as donation needs.

    Examples:
      >>> import jax.numpy as jnp
      >>> zeros_like(jnp.asarray(1.))
      Array(0., dtype=float32)
    """
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=x.dtype), tree)
