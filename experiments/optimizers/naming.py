"""An optimizer and its options as one word, for commands, tables and file names."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Value = int | float | bool | str | None


class Choice(NamedTuple):
    """An optimizer by its name and its options."""

    name: str
    options: dict[str, Value]


def choice_of(text: str) -> Choice:
    """The optimizer of a text such as ``nlcg,preconditioner=rms,beta_max=0.9``.

    Raises:
      ValueError: if an option has no value.

    Examples:
      >>> choice_of("nlcg,preconditioner=rms,beta_max=0.9")
      Choice(name='nlcg', options={'preconditioner': 'rms', 'beta_max': 0.9})
    """
    name, *parts = text.split(",")
    options: dict[str, Value] = {}
    for part in parts:
        option, equals, value = part.partition("=")
        if not option or not equals or not value:
            raise ValueError(
                f"optimizer={text!r} has {part!r}; a name may be followed by options "
                "such as 'nlcg,preconditioner=rms,beta_max=0.9'"
            )
        options[option] = _value(value)
    return Choice(name, options)


def text_of(name: str, options: Mapping[str, Any]) -> str:
    """The text that `choice_of` reads; lists and None among the options are left out.

    Examples:
      >>> text_of("muon", {"momentum": 0.8})
      'muon,momentum=0.8'
    """
    parts = [
        f"{option}={str(value).lower() if isinstance(value, bool) else value}"
        for option, value in options.items()
        if isinstance(value, bool | int | float | str)
    ]
    return ",".join([name, *parts])


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    if text == "None":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
