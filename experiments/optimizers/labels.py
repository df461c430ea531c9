"""Labels of optimizers for tables and legends."""

from collections.abc import Collection, Mapping
from typing import Any

OPTION_LABELS = {
    "across_halves": "across halves",
    "beta": "β = {}",
    "beta_max": "β ≤ {}",
    "beta_smoothing": "β smoothing {}",
    "b1": "β₁ {}",
    "b2": "β₂ {}",
    "curvature_period": "curvature every {}",
    "num_steps": "{} steps",
    "refresh_period": "refreshed every {}",
    "weight_decay": "weight decay {}",
}


def with_options(
    label: str, options: Mapping[str, Any], told: Collection[str] = ()
) -> str:
    """A label followed by the options that were set.

    Args:
      label: label of the optimizer.
      options: options that were set, by name; lists are left out.
      told: names of the options that the label already contains.

    Examples:
      >>> with_options("Muon", {"momentum": 0.8, "weight_decay": 0.01})
      'Muon, momentum 0.8, weight decay 0.01'
    """
    parts = [
        _option(name, value)
        for name, value in options.items()
        if name not in told and isinstance(value, bool | int | float | str)
    ]
    return ", ".join([label, *parts])


def _option(name: str, value: bool | int | float | str) -> str:
    if name == "ramp":
        return "ramp" if value else "no ramp"
    text = OPTION_LABELS.get(name, name.replace("_", " "))
    if isinstance(value, bool):
        return text if value else f"no {text}"
    shown = value if isinstance(value, str) else f"{value:.3g}"
    return text.format(shown) if "{}" in text else f"{text} {shown}"
