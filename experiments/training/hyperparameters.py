"""The numbers in the state by which runs of one compiled program may differ."""

import dataclasses

from experiments.config import RunConfig

PLACEHOLDER = 0.5  # within the range of every option that is a float


def hyperparameters_of(config: RunConfig) -> dict[str, float]:
    """The L2 factor and the float options of the optimizer, by name."""
    options = config.optimizer_options
    floats = {name: v for name, v in options.items() if isinstance(v, float)}
    return {"l2": config.l2, **floats}


def program_of(config: RunConfig) -> RunConfig:
    """A configuration that is the same for all runs that share a program."""
    options = {
        name: PLACEHOLDER if isinstance(value, float) else value
        for name, value in config.optimizer_options.items()
    }
    return dataclasses.replace(
        config, optimizer_options=options, learning_rate=1.0, l2=0.0, seed=0
    )
