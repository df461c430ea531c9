"""Large constants of a function, stored once however often it is evaluated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from nlcg_optax.xla import switch

SMALLEST = 1024  # elements; smaller constants stay in the function


def share_constants(fn: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Returns the function with its large constants stored outside of it.

    XLA gives every branch and every loop that evaluates a function its own copies of
    the arrays that it closes over, such as the data of a fit. They take memory, and a
    copy that is read rarely is no longer in the processor's caches. Integers stay in
    the function: XLA precomputes what is indexed by them. The plain twin is ``fn``.

    Args:
      fn: a function of arrays.
      *args: its arguments; only shapes and dtypes count.

    Returns:
      A function that computes the same for arguments of these shapes and dtypes.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> data = jnp.arange(2000.)
      >>> def product(x):
      ...     return share_constants(lambda y: data @ y, x)(x)
      >>> "optimization_barrier" in str(jax.make_jaxpr(product)(data))
      True
      >>> bool(jax.jit(product)(data) == data @ data)
      True
    """
    if not switch.is_on():
        return fn
    jaxpr, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    if not any(_is_large(const) for const in jaxpr.consts):
        return fn
    # After a barrier it is no longer a constant, so XLA makes no copies.
    consts = [
        jax.lax.optimization_barrier(const) if _is_large(const) else const
        for const in jaxpr.consts
    ]
    flat_fn = jaxpr_as_fun(ClosedJaxpr(jaxpr.jaxpr, consts))

    def shared(*args: Any) -> Any:
        return jax.tree.unflatten(
            jax.tree.structure(out), flat_fn(*jax.tree.leaves(args))
        )

    return shared


def _is_large(const: Any) -> bool:
    if isinstance(const, jax.core.Tracer) or jnp.size(const) < SMALLEST:
        return False
    return bool(jnp.issubdtype(jnp.result_type(const), jnp.inexact))
