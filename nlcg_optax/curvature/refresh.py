"""When curvature is measured: every few steps, or when the caller says so."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree
from nlcg_optax.xla import control_flow


def is_due(
    count: jax.Array, refresh_period: int | jax.Array, extra_args: dict[str, Any]
) -> bool | jax.Array:
    """Returns whether a call of ``update`` measures curvature.

    Args:
      count: number of calls so far.
      refresh_period: calls between measurements.
      extra_args: the extra arguments of the call. ``refresh``, a Python boolean,
        overrides the period.

    Returns:
      A Python boolean if it is known when the program is traced, otherwise an array.

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
    """Calls one of two functions, in a conditional only if ``due`` is not known.

    A known ``due`` also keeps the measurement out of a conditional, in which backward
    passes of convolutions on CPU are some thirty times slower (jax 0.10.2).

    Examples:
      >>> if_due(True, lambda: 1, lambda: 2)
      1
    """
    if isinstance(due, bool):
        return measure() if due else otherwise()
    return control_flow.cond(due, measure, otherwise)
