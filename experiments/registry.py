"""Looking a name up in a registry, with an error that lists what there is."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def look_up(argument: str, name: str, registry: Mapping[str, T]) -> T:
    """Returns ``registry[name]``.

    Raises:
      ValueError: if the name is unknown; the message names ``argument``, the value
        and what is allowed.
    """
    if name not in registry:
        raise ValueError(
            f"{argument}={name!r} is unknown; allowed are {sorted(registry)}"
        )
    return registry[name]
