"""Runs that take seconds, for the tests of training."""

from experiments.config import RunConfig
from experiments.training import compile_program, make_program, run_epochs


def train(config, dataset, seed=0):
    """The program of a run, and its reports."""
    program = make_program(config, dataset)
    compiled = compile_program(program, dataset)
    state = program.init(seed, config.learning_rate)
    return program, list(run_epochs(compiled, config, dataset, state))


def quick(**settings):
    """A configuration with a small batch, few epochs and one report."""
    settings = {"batch_size": 16, "epochs": 20, **settings}
    return RunConfig(**{"epochs_per_report": settings["epochs"], **settings})
