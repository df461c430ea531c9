"""Lists of allowed names in the help of a command."""

from collections.abc import Callable, Iterable
from typing import Any

import tyro

from experiments.optimizers.registration import OPTIMIZERS


def one_of(names: Iterable[str]) -> Any:
    """A field annotation that makes ``--help`` list the allowed names.

    The value is checked where it is used, so that an error names the argument.
    """
    allowed = ", ".join(names)
    return tyro.conf.arg(
        help_behavior_hint=lambda default: f"(allowed: {allowed}; default: {default})"
    )


def with_note(note: Callable[[], str]) -> Any:
    """A field annotation that adds a note to the field's ``--help``."""
    return tyro.conf.arg(help_behavior_hint=lambda _: f"({note()})")


def options_of_optimizers() -> str:
    """The options of every optimizer as text."""
    return "; ".join(
        f"{name}: {', '.join(registration.options({})) or 'none'}"
        for name, registration in OPTIMIZERS.items()
    )
