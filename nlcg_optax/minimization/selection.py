"""Conditionals of the loop of `minimize` that copy as little as they can."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree


def apply_if(
    condition: jax.Array, fn: Callable[[jax.Array, Any], Any], state: Any
) -> Any:
    """Computes ``fn(condition, state)`` where the condition holds, else the state.

    A loop of one turn or none: XLA lets a loop write over its state, while a
    conditional copies what its branches return, here all of the memory. Under ``vmap``
    the loop also runs for problems whose condition is false, and discards the result;
    ``fn`` is passed the condition so that it calls nothing on the host then.

    Examples:
      >>> import jax.numpy as jnp
      >>> apply_if(jnp.array(True), lambda _, x: 2 * x, jnp.float32(3.))
      Array(6., dtype=float32)
    """

    def body(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        return jnp.zeros([], jnp.bool_), fn(*carry)

    return jax.lax.while_loop(lambda carry: carry[0], body, (condition, state))[1]


def cast_like(tree: PyTree, other: PyTree) -> PyTree:
    """Casts a tree to the dtypes of another, without implicit promotion."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, other)


def select(condition: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    """Selects a tree; a conditional copies, a selection is a loop for every leaf."""
    return jax.lax.cond(condition, lambda: cast_like(x, y), lambda: y)


def point_at(current: PyTree, updates: PyTree, step: jax.Array) -> PyTree:
    """Computes x + t d, where ``updates`` are -d."""
    return optax.apply_updates(
        current, jax.tree.map(lambda u: -step.astype(u.dtype) * u, updates)
    )
