"""When curvature is looked at: every so many steps, or when the caller says so."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree


def is_due(
    count: jax.Array, refresh_period: int | jax.Array, extra_args: dict[str, Any]
) -> bool | jax.Array:
    """Tells whether a call of ``update`` looks at curvature.

    Args:
      count: number of calls so far.
      refresh_period: every so many calls.
      extra_args: the extra arguments of the call. ``refresh``, a Python boolean,
        decides in place of the period.

    Returns:
      A Python boolean where it is known when the program is traced, and an array
      otherwise.

    Raises:
      TypeError: if ``refresh`` is neither None nor a Python boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> is_due(jnp.int32(3), 1, {}), is_due(jnp.int32(3), 2, {"refresh": False})
      (True, False)
      >>> is_due(jnp.int32(4), 2, {})
      Array(True, dtype=bool)
    """
    refresh = extra_args.get("refresh")
    if refresh is not None:
        if not isinstance(refresh, bool):
            raise TypeError(
                f"refresh={refresh!r} must be True, False or None: it chooses between "
                "two programs, so it has to be known when they are compiled"
            )
        return refresh
    if isinstance(refresh_period, int) and refresh_period == 1:
        return True
    return count % jnp.asarray(refresh_period, jnp.int32) == 0


def if_due(
    due: bool | jax.Array,
    measure: Callable[[], PyTree],
    otherwise: Callable[[], PyTree],
) -> PyTree:
    """Calls one of two functions, in a conditional only where it must.

    XLA's compiler for CPUs makes backward passes of convolutions inside a conditional
    some thirty times slower than outside.

    Examples:
      >>> if_due(True, lambda: 1, lambda: 2)
      1
    """
    if isinstance(due, bool):
        return measure() if due else otherwise()
    return jax.lax.cond(due, measure, otherwise)
