"""Conditionals and loops that compile nothing where Python can decide, or copy less.

Outside of ``jax.jit``, JAX compiles a conditional or a loop again at every call whose
functions are new objects, as closures are. There the values of predicates are known,
and Python's own ``if`` and ``while`` do the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree
from nlcg_optax.xla import switch, varying
from nlcg_optax.xla.known import is_known


def cond(
    predicate: bool | jax.Array,
    true_fn: Callable[..., PyTree],
    false_fn: Callable[..., PyTree],
    *operands: Any,
) -> PyTree:
    """Computes ``jax.lax.cond(predicate, true_fn, false_fn, *operands)``, its twin.

    Args:
      predicate: a boolean scalar.
      true_fn: function of the operands.
      false_fn: function of the operands, with results of the same shapes and dtypes.
      *operands: trees of arrays.

    Returns:
      The result of one of the functions.

    Examples:
      >>> import jax.numpy as jnp
      >>> cond(jnp.array(True), lambda x: x + 1, lambda x: x, jnp.float32(1.))
      Array(2., dtype=float32)
    """
    if _is_left_to_lax(predicate):
        return varying.cond(predicate, true_fn, false_fn, *operands)
    return true_fn(*operands) if predicate else false_fn(*operands)


def while_loop(
    cond_fn: Callable[[PyTree], jax.Array],
    body_fn: Callable[[PyTree], PyTree],
    init: PyTree,
) -> PyTree:
    """Computes ``jax.lax.while_loop(cond_fn, body_fn, init)``, its twin.

    Args:
      cond_fn: from the carry to whether to continue.
      body_fn: from the carry to the next carry, of the same shapes and dtypes.
      init: the first carry.

    Returns:
      The first carry for which ``cond_fn`` is false.

    Examples:
      >>> import jax.numpy as jnp
      >>> while_loop(lambda x: x < 10, lambda x: 2 * x, jnp.int32(3))
      Array(12, dtype=int32)
    """
    carry = init
    while not _is_left_to_lax(predicate := cond_fn(carry)):
        if not predicate:
            return carry
        carry = body_fn(carry)
    return varying.while_loop(cond_fn, body_fn, carry)


def apply_if(
    condition: jax.Array, fn: Callable[[jax.Array, Any], Any], state: Any
) -> Any:
    """Computes ``fn(condition, state)`` where the condition holds, else the state.

    This is a loop of at most one turn; its plain twin is a conditional. XLA lets a loop
    write over its state, while a conditional copies what its branches return. Under
    ``vmap`` the loop also runs for problems whose condition is false, and discards the
    result; ``fn`` is passed the condition so that it then calls nothing on the host.

    Args:
      condition: a boolean scalar.
      fn: function of the condition and the state, with a result like the state.
      state: a tree of arrays.

    Returns:
      One of the two.

    Examples:
      >>> import jax.numpy as jnp
      >>> apply_if(jnp.array(True), lambda _, x: 2 * x, jnp.float32(3.))
      Array(6., dtype=float32)
    """
    if not switch.is_on():
        return varying.cond(condition, fn, lambda _, old: old, condition, state)

    def body(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        return jnp.zeros([], jnp.bool_), fn(*carry)

    return varying.while_loop(lambda carry: carry[0], body, (condition, state))[1]


def _is_left_to_lax(predicate: bool | jax.Array) -> bool:
    # Under `jit` the result of an operation is a tracer even if no operand is one.
    return not is_known(jnp.logical_not(predicate)) or not switch.is_on()
