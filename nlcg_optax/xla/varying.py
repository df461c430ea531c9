"""Control flow under ``jax.shard_map``, whose types say over which axes values vary.

JAX asks that both branches of a conditional, and both ends of a loop, vary over the
same axes. A counter that starts at zero on every device does not vary, but does as soon
as it counts what differs between devices.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from nlcg_optax.dtypes import PyTree

Axes: TypeAlias = list[frozenset[str]]


def cond(
    predicate: bool | jax.Array,
    true_fn: Callable[..., PyTree],
    false_fn: Callable[..., PyTree],
    *operands: Any,
) -> PyTree:
    """Computes ``jax.lax.cond``, its twin; each result varies as in either branch.

    Inside a branch, a value just written is read from memory. Outside of a conditional
    XLA would fuse the write into each of its readers, and copy the array it writes to.

    Examples:
      >>> import jax.numpy as jnp
      >>> cond(jnp.array(True), lambda x: x + 1, lambda x: x, jnp.float32(1.))
      Array(2., dtype=float32)
    """
    if not _is_mapped():
        return jax.lax.cond(predicate, true_fn, false_fn, *operands)
    outs = (axes_of(jax.eval_shape(fn, *operands)) for fn in (true_fn, false_fn))
    axes = [one | other for one, other in zip(*outs, strict=True)]
    return jax.lax.cond(
        predicate,
        lambda *xs: varying_over(true_fn(*xs), axes),
        lambda *xs: varying_over(false_fn(*xs), axes),
        *operands,
    )


def while_loop(
    cond_fn: Callable[[PyTree], jax.Array],
    body_fn: Callable[[PyTree], PyTree],
    init: PyTree,
) -> PyTree:
    """Computes ``jax.lax.while_loop``, its twin; the carry varies as at its end.

    Examples:
      >>> import jax.numpy as jnp
      >>> while_loop(lambda x: x < 10, lambda x: 2 * x, jnp.int32(3))
      Array(12, dtype=int32)
    """
    if not _is_mapped():
        return jax.lax.while_loop(cond_fn, body_fn, init)
    axes, wider = None, axes_of(init)
    while axes != wider:  # ends, as axes are only added
        axes = wider
        out = axes_of(jax.eval_shape(body_fn, varying_over(init, axes)))
        wider = [old | new for old, new in zip(axes, out, strict=True)]
    return jax.lax.while_loop(
        cond_fn,
        lambda carry: varying_over(body_fn(carry), wider),
        varying_over(init, wider),
    )


def axes_of(tree: PyTree) -> Axes:
    """The mapped axes over which each leaf varies.

    Examples:
      >>> import jax.numpy as jnp
      >>> axes_of(jnp.ones(2))
      [frozenset()]
    """
    return [axes_of_type(jax.typeof(leaf)) for leaf in jax.tree.leaves(tree)]


def axes_of_type(kind: Any) -> frozenset[str]:
    """The mapped axes over which a value of this type varies.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> axes_of_type(jax.typeof(jnp.ones(2)))
      frozenset()
    """
    manual = getattr(kind, "manual_axis_type", None)
    axes: frozenset[str] = kind.vma if manual is None else manual.varying  # older name
    return axes


def varying_over(tree: PyTree, axes: Axes) -> PyTree:
    """The tree, with each leaf marked as varying over these axes, too.

    Examples:
      >>> import jax.numpy as jnp
      >>> varying_over(jnp.ones(2), [frozenset()])
      Array([1., 1.], dtype=float32)
    """
    leaves, treedef = jax.tree.flatten(tree)

    def marked(leaf: jax.Array, wanted: frozenset[str], own: frozenset[str]) -> Any:
        missing = tuple(sorted(wanted - own))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.unflatten(treedef, list(map(marked, leaves, axes, axes_of(tree))))


def varying_with(tree: PyTree, other: PyTree) -> PyTree:
    """The tree, with each leaf varying over the axes of all leaves of both trees.

    Examples:
      >>> import jax.numpy as jnp
      >>> varying_with(jnp.ones(2), jnp.zeros(3))
      Array([1., 1.], dtype=float32)
    """
    if not _is_mapped():
        return tree
    axes: frozenset[str] = frozenset().union(*axes_of((tree, other)))
    return varying_over(tree, [axes] * len(jax.tree.leaves(tree)))


def _is_mapped() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)
