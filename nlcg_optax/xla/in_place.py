"""States that XLA can write over the old ones, instead of copying them first."""

import functools

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree, select
from nlcg_optax.xla import switch


class SelfGuardedTransformation(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """A transformation that ignores a gradient whose squared norm is not finite.

    Its ``update`` then returns the state that it was given. If it is itself the
    preconditioner of `scale_by_nlcg`, not a member of a chain, the new state is taken
    without a selection between the new and the old one (see `selected`).
    """


def selected(
    tx: optax.GradientTransformation, condition: jax.Array, new: PyTree, old: PyTree
) -> PyTree:
    """Selects the new state of a transformation where a condition holds, else the old.

    The plain twin is the selection itself. For a `SelfGuardedTransformation` there is
    no selection, because XLA would keep both states for it: a copy of every array.

    Args:
      tx: the transformation.
      condition: a boolean scalar, false only if the gradient is not finite or if
        ``tx`` returned something that is not finite.
      new: its new state.
      old: its old state.

    Returns:
      One of the states, in the dtypes of the old one.

    Examples:
      >>> selected(optax.identity(), jnp.array(False), jnp.ones(2), jnp.zeros(2))
      Array([0., 0.], dtype=float32)
    """
    if isinstance(tx, SelfGuardedTransformation) and switch.is_on():
        return new
    return select(condition, new, old)


def flag_per_leaf(flag: jax.Array, after: PyTree) -> PyTree:
    """Copies a flag for each leaf of a tree, available once that leaf is computed.

    A selection by such a flag can write its result over an array from which the leaf
    is computed. With the flag itself, XLA on CPU selects first and copies that array.

    Args:
      flag: a boolean scalar.
      after: a tree of real or complex arrays without NaN, which would clear the flag.

    Returns:
      A tree of boolean scalars, all equal to ``flag``.

    Examples:
      >>> flag_per_leaf(jnp.array(True), after={"w": jnp.array([1., -3.])})
      {'w': Array(True, dtype=bool)}
    """
    if switch.on_one_cpu(after):
        # A list: for `jax.jit` trees of two dataclasses with equal fields are the same.
        leaves, treedef = jax.tree.flatten(after)
        return jax.tree.unflatten(treedef, _flag_per_leaf(flag, leaves))
    return plain_flag_per_leaf(flag, after)


def plain_flag_per_leaf(flag: jax.Array, after: PyTree) -> PyTree:
    """The plain twin of `flag_per_leaf`."""
    return jax.tree.map(lambda _: flag, after)


@functools.partial(jax.jit, inline=True)
def _flag_per_leaf(flag: jax.Array, after: list[jax.Array]) -> list[jax.Array]:
    def read_first(leaf: jax.Array) -> jax.Array:
        if not leaf.size:
            return flag
        # Never NaN, but XLA cannot know.
        return flag & ~jnp.isnan(leaf[(0,) * leaf.ndim])

    return jax.lax.platform_dependent(
        flag,
        after,
        cpu=lambda _, leaves: jax.tree.map(read_first, leaves),
        default=plain_flag_per_leaf,
    )
