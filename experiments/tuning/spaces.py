"""Values of a search space in a configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.config import RunConfig


def with_values(config: RunConfig, values: Mapping[str, float]) -> RunConfig:
    """A configuration with the values of dimensions, by their names.

    Where decoupled decay is among them, the loss has no L2 term.
    """
    options = dict(config.optimizer_options)
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("learning_rate", "l2"):
            fields[name] = value
        elif name == "warmup_fraction":
            fields["warmup_epochs"] = value * config.epochs
        else:
            options[name] = value
    if "weight_decay" in values:
        fields["l2"] = 0.0
    return dataclasses.replace(config, optimizer_options=options, **fields)
