"""What XLA is to compute first, where its own choice costs memory traffic."""

import itertools

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, promote


def settle(*scalars: jax.Array) -> tuple[jax.Array, ...]:
    """Makes XLA finish a few scalars before the elementwise work that uses them.

    The identity. Without it the compiler fuses the whole scalar computation into the
    loop of every leaf, and copies state that it could overwrite.

    Args:
      *scalars: real or boolean scalars, or vectors of an entry a leaf.

    Returns:
      The same.

    Examples:
      >>> import jax.numpy as jnp
      >>> settle(jnp.float32(2.), jnp.array(True))
      (Array(2., dtype=float32), Array(True, dtype=bool))
    """
    return jax.lax.platform_dependent(
        *scalars,
        cpu=_settle_by_sort,
        default=lambda *values: tuple(jax.lax.optimization_barrier(values)),
    )


def _settle_by_sort(*scalars: jax.Array) -> tuple[jax.Array, ...]:
    # XLA's CPU pipeline drops optimization barriers before it fuses. The result of a
    # sort is never fused, and sorting two equal numbers changes nothing.
    dtype = promote(jnp.float32, *(x.dtype for x in scalars))
    parts = [jnp.ravel(x).astype(dtype) for x in scalars]
    flat = jnp.concatenate(parts)
    flat = jax.lax.sort(jnp.stack([flat, flat]), dimension=0)[0]
    ends = itertools.accumulate(part.size for part in parts)
    return tuple(
        flat[end - x.size : end].reshape(x.shape).astype(x.dtype)
        for x, end in zip(scalars, ends, strict=True)
    )


def flags_after(flag: jax.Array, tree: PyTree) -> PyTree:
    """Copies a flag for each leaf of a tree, to be read once the leaf is computed.

    What is written where such a flag is true can then take the place of an array that
    the leaf is computed from, which XLA on CPU would otherwise copy first. On several
    devices, and off the CPU, the copies are the flag itself.

    Args:
      flag: a boolean scalar.
      tree: a tree of real or complex arrays without NaN, which would clear the flag.

    Returns:
      A tree of boolean scalars, all equal to ``flag``.

    Examples:
      >>> import jax.numpy as jnp
      >>> flags_after(jnp.array(True), {"w": jnp.array([1., -3.])})
      {'w': Array(True, dtype=bool)}
    """
    if jax.device_count() > 1:
        return jax.tree.map(lambda _: flag, tree)

    def read_first(leaf: jax.Array) -> jax.Array:
        if not leaf.size:
            return flag
        # Never NaN, but XLA cannot know.
        return flag & ~jnp.isnan(leaf[(0,) * leaf.ndim])

    return jax.lax.platform_dependent(
        tree,
        cpu=lambda leaves: jax.tree.map(read_first, leaves),
        default=lambda leaves: jax.tree.map(lambda _: flag, leaves),
    )
