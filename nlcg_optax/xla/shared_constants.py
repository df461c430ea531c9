"""Large constants, held once however often they are read."""

from typing import Any

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree
from nlcg_optax.xla import switch

SMALLEST = 1024  # elements; smaller constants stay in the function


def share_constants(tree: PyTree) -> PyTree:
    """Returns the tree with its large constants made non-constant.

    XLA gives every branch and every loop that reads a constant, such as the data of a
    fit, a separate copy. Copies take memory, and a copy that is seldom read has left
    the processor's caches when it is needed. Integers stay constants: XLA precomputes
    what they index.

    Args:
      tree: a tree of arrays.

    Returns:
      The same numbers; the plain twin returns the tree itself.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> data = jnp.arange(2000.)
      >>> def product(x):
      ...     return share_constants(data) @ x
      >>> "optimization_barrier" in str(jax.make_jaxpr(product)(data))
      True
      >>> bool(jax.jit(product)(data) == data @ data)
      True
    """
    if not switch.is_on():
        return tree
    return jax.tree.map(
        lambda x: jax.lax.optimization_barrier(x) if _is_large(x) else x, tree
    )


def _is_large(value: Any) -> bool:
    if jnp.size(value) < SMALLEST:
        return False
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.inexact))
