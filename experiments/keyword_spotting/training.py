"""Training with the loop of all experiments: on frames, and on windows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from experiments.config import RunConfig
from experiments.data import Dataset, Split
from experiments.keyword_spotting.states import Statistics
from experiments.training import (
    CompiledProgram,
    Report,
    TrainState,
    check_finite,
    compile_program,
    hyperparameters_of,
    make_program,
    program_of,
    run_epochs,
)
from experiments.training.losses import cross_entropies

PyTree = Any
Losses = Callable[[jax.Array, jax.Array, float], jax.Array]


def hinges(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """The loss of each window: ``max(0, 1 - d)`` or ``max(0, 1 + d)``.

    ``d`` is the difference of the two logits; there is no smoothing.
    """
    del smoothing
    return optax.losses.multiclass_hinge_loss(logits, labels)


class Trainer:
    """Trains networks; runs of one program share its compilation.

    Args:
      model: the network.
      losses: `cross_entropies` of frames or `hinges` of windows.
    """

    def __init__(self, model: nn.Module, losses: Losses = cross_entropies):
        self.model = model
        self.losses = losses
        self._compiled: dict[str, CompiledProgram] = {}

    def train(
        self,
        config: RunConfig,
        inputs: np.ndarray,
        labels: np.ndarray,
        params: PyTree | None = None,
        batch_stats: PyTree | None = None,
        on_report: Callable[[Report, float], None] | None = None,
    ) -> TrainState:
        """Trains to the end.

        Args:
          config: settings of the run; data set and model are those given here, and
            runs of one program must have inputs of one shape.
          inputs: features, by example.
          labels: as the losses take them.
          params: weights to start from; None for random ones.
          batch_stats: constants of the model.
          on_report: called after each report, with it and the gradient-equivalents so
            far.

        Raises:
          DivergedError: if a loss is not finite.
        """
        split = Split(jax.numpy.asarray(inputs), jax.numpy.asarray(labels))
        dataset = Dataset(2, split, None, split)
        compiled = self._program(config, dataset)
        program = compiled.program
        state = program.init(
            config.seed, config.learning_rate, hyperparameters_of(config)
        )
        copied: PyTree = jax.tree.map(jax.numpy.array, (params, batch_stats))
        state = program.restart(
            state,
            state.params if params is None else copied[0],
            state.batch_stats if batch_stats is None else copied[1],
        )
        for report in run_epochs(compiled, config, dataset, state):
            check_finite(report, config)
            state = report.state
            if on_report is not None:
                on_report(report, program.gradient_equivalents * int(state.step))
        return state

    def _program(self, config: RunConfig, dataset: Dataset) -> CompiledProgram:
        shared = program_of(config)
        key = f"{shared!r} {dataset.train.images.shape}"
        if key not in self._compiled:
            # One device: the sets are small, and of any size.
            program = make_program(shared, dataset, jax.local_devices()[:1])
            step = dataclasses.replace(
                program.step, model=self.model, losses=self.losses
            )
            program = dataclasses.replace(program, step=step)
            self._compiled[key] = compile_program(program, dataset)
        return self._compiled[key]


def constants_of(statistics: Statistics) -> dict[str, jax.Array]:
    """Priors and transitions as the collection ``batch_stats`` of `KeywordScorer`."""
    return {
        "log_priors": statistics.log_priors,
        "stay": statistics.transitions.stay,
        "move": statistics.transitions.move,
    }
