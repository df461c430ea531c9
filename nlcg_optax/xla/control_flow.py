"""Conditionals and loops that an update outside of ``jit`` runs without compiling.

``jax.lax.cond`` and ``jax.lax.while_loop`` compile what they are given, and functions
that an update defines are new at every call. Where the condition is known there is
nothing to compile: Python branches and loops by itself.
"""

from collections.abc import Callable
from typing import Any

import jax

from nlcg_optax.dtypes import PyTree


def is_known(flag: bool | jax.Array) -> bool:
    """Whether a flag has a value already, as it has outside of ``jit`` and ``vmap``.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> is_known(jnp.array(True))
      True
      >>> jax.jit(lambda flag: is_known(flag))(True)
      Array(False, dtype=bool)
    """
    return not isinstance(flag, jax.core.Tracer)


def cond(
    flag: bool | jax.Array,
    true_fn: Callable[..., PyTree],
    false_fn: Callable[..., PyTree],
    *operands: PyTree,
) -> PyTree:
    """Computes ``jax.lax.cond(flag, true_fn, false_fn, *operands)``.

    Examples:
      >>> import jax.numpy as jnp
      >>> cond(jnp.array(False), lambda x: x + 1, lambda x: x - 1, 3)
      2
    """
    if is_known(flag):
        return true_fn(*operands) if bool(flag) else false_fn(*operands)
    return jax.lax.cond(flag, true_fn, false_fn, *operands)


def while_loop(
    condition: Callable[[Any], jax.Array], body: Callable[[Any], Any], carry: Any
) -> Any:
    """Computes ``jax.lax.while_loop(condition, body, carry)``.

    Args:
      condition: whether to take another turn.
      body: one turn; its result has the structure, shapes and dtypes of the carry.
      carry: a tree of arrays.

    Returns:
      The last carry.

    Examples:
      >>> import jax.numpy as jnp
      >>> while_loop(lambda x: x < 10, lambda x: 2 * x, jnp.int32(3))
      Array(12, dtype=int32)
    """
    while is_known(flag := condition(carry)):
        if not bool(flag):
            return carry
        carry = body(carry)
    return jax.lax.while_loop(condition, body, carry)
