"""Mapped axes over which parameters are split by hand, set once for all products."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TypeAlias

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
