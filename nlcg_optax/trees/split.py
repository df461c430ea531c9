"""Mapped axes over which parameters are split by hand, set once for all products."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

AxisName: TypeAlias = str | tuple[str, ...]

_AXIS_NAME: contextvars.ContextVar[AxisName | None] = contextvars.ContextVar(
    "axis_name", default=None
)


def axis_of_parameters() -> AxisName | None:
    """The mapped axes over which parameters are split here; None for none.

    Examples:
      >>> axis_of_parameters() is None
      True
    """
    return _AXIS_NAME.get()


@contextlib.contextmanager
def parameters_split_over(axis_name: AxisName | None) -> Iterator[None]:
    """Makes reductions over parameters span these axes in functions traced inside it.

    Args:
      axis_name: axes of ``pmap``, ``shard_map`` or ``vmap``; None for none.

    Examples:
      >>> with parameters_split_over("model"):
      ...     axis_of_parameters()
      'model'
    """
    token = _AXIS_NAME.set(axis_name)
    try:
        yield
    finally:
        _AXIS_NAME.reset(token)


def total_over_parts(tree: Any) -> Any:
    """The sums of arrays over the devices that hold the parts of the parameters.

    Examples:
      >>> total_over_parts(3)
      3
    """
    axis_name = axis_of_parameters()
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def on_any_part(flag: jax.Array) -> jax.Array:
    """Whether a flag is true on any device that holds a part of the parameters.

    Examples:
      >>> def is_negative(part):
      ...     with parameters_split_over("parts"):
      ...         return on_any_part(part < 0)
      >>> jax.vmap(is_negative, axis_name="parts")(jnp.array([1., -1.]))
      Array([ True,  True], dtype=bool)
    """
    split = axis_of_parameters() is not None
    return total_over_parts(flag.astype(jnp.int32)) > 0 if split else flag


def on_all_parts(flag: jax.Array) -> jax.Array:
    """Whether a flag is true on every device that holds a part of the parameters.

    Examples:
      >>> on_all_parts(jnp.array(True))
      Array(True, dtype=bool)
    """
    return flag if axis_of_parameters() is None else ~on_any_part(~flag)
