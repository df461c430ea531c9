"""Stochastic weight averaging in parallel (Gupta, Serrano, DeCoste, arXiv 2001.02312).

1. All devices train one network with large batches, until a training accuracy or the
   end of the epochs.
2. Workers go on from there, each with small batches in an order of its own, an
   optimiser that starts anew, and no synchronisation.
3. The workers' weights are averaged, and the statistics of batch normalisation
   recomputed on the training images.

The first two phases are runs like any other, so it works behind any optimiser.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import models, preprocessing
from experiments.batch_statistics import recomputed_statistics
from experiments.config import RunConfig
from experiments.data import Dataset, Split
from experiments.training import (
    CompiledProgram,
    DivergedError,
    Evaluation,
    Metrics,
    Program,
    TrainState,
    check_finite,
    compile_program,
    evaluate_split,
    hyperparameters_of,
    make_program,
    run_epochs,
)

PyTree = Any
Layout = Literal["sequential", "vmap", "mesh"]

LAYOUTS = ("sequential", "vmap", "mesh")
WORKERS = "workers"  # axis of the mesh


@dataclasses.dataclass(frozen=True)
class SwapConfig:
    """The settings of both phases.

    Attributes:
      large: of the first phase; its schedule runs over ``large.epochs``.
      small: of each worker; it differs from ``large`` in how it trains, not in data
        and model.
      workers: of the second phase.
      stop_accuracy: mean accuracy of the batches between two reports at which the first
        phase ends; None for the end of ``large.epochs``.
      layout: how workers share the devices: one after the other, vectorised on one
        device, or along an axis of a mesh of all devices.
    """

    large: RunConfig
    small: RunConfig
    workers: int = 4
    stop_accuracy: float | None = None
    layout: Layout = "sequential"

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers={self.workers!r} must be at least 1")
        if self.layout not in LAYOUTS:
            raise ValueError(
                f"layout={self.layout!r} is unknown; allowed are {list(LAYOUTS)}"
            )
        if self.stop_accuracy is not None and not 0 < self.stop_accuracy <= 1:
            raise ValueError(
                f"stop_accuracy={self.stop_accuracy!r} must be above 0 and at most 1, "
                "or None"
            )
        for name in (
            "dataset",
            "model",
            "compute_dtype",
            "train_examples",
            "validation_examples",
            "split_seed",
            "classes",
            "halved_images",
        ):
            large, small = getattr(self.large, name), getattr(self.small, name)
            if large != small:
                raise ValueError(
                    f"large has {name}={large!r} and small has {name}={small!r}; both "
                    "phases need the same"
                )


class Network(NamedTuple):
    """Weights with their statistics, and how well they do.

    Attributes:
      params: the weights.
      batch_stats: statistics of batch normalisation.
      train: loss and accuracy on the training images.
      test: likewise on the test images.
    """

    params: PyTree
    batch_stats: PyTree
    train: Evaluation
    test: Evaluation


class SwapResult(NamedTuple):
    """What the phases made, and what they cost.

    Attributes:
      large: the network behind the first phase.
      workers: each worker's network behind the second.
      averaged: the network of the averaged weights.
      large_steps: of the first phase.
      small_steps: of each worker.
      gradients: of single images, in gradient-equivalents, of the first phase and of
        all workers together.
      seconds: of the phases: the first, the second of all workers together, the third.
    """

    large: Network
    workers: list[Network]
    averaged: Network
    large_steps: int
    small_steps: int
    gradients: tuple[float, float]
    seconds: tuple[float, float, float]


def train_swap(config: SwapConfig, dataset: Dataset) -> SwapResult:
    """Runs all three phases.

    Raises:
      DivergedError: if a loss is not finite.
      ValueError: if the devices cannot share workers or a batch equally, or a
        configuration is wrong.
    """
    evaluate = functools.partial(_evaluated, config.large, dataset)
    large, program, large_seconds = _train_large(config, dataset)
    large_cost = program.gradient_equivalents * program.batch_size * int(large.step)
    # The weights that the first phase would be judged by are what workers start from.
    start = large.average if config.large.ema_decay else large.params
    start, statistics = jax.device_get((start, large.batch_stats))
    workers, worker, worker_seconds = _train_workers(config, dataset, start, statistics)
    small_steps = int(workers.steps[0])
    small_cost = worker.gradient_equivalents * worker.batch_size * small_steps
    begin = time.perf_counter()
    averaged = jax.tree.map(lambda leaf: np.mean(leaf, axis=0), workers.params)
    model = _model(config.large, dataset)
    new_statistics = recomputed_statistics(
        model, averaged, statistics, dataset.train, worker.batch_size
    )
    averaging_seconds = time.perf_counter() - begin
    return SwapResult(
        large=evaluate(start, statistics),
        workers=[
            evaluate(*jax.tree.map(lambda x, row=row: x[row], workers[:2]))
            for row in range(config.workers)
        ],
        averaged=evaluate(averaged, new_statistics),
        large_steps=int(large.step),
        small_steps=small_steps,
        gradients=(large_cost, config.workers * small_cost),
        seconds=(large_seconds, worker_seconds, averaging_seconds),
    )


def _train_large(
    config: SwapConfig, dataset: Dataset
) -> tuple[TrainState, Program, float]:
    settings = config.large
    program = make_program(settings, dataset)
    compiled = compile_program(program, dataset)
    state = program.init(
        settings.seed, settings.learning_rate, hyperparameters_of(settings)
    )
    seconds = 0.0
    for report in run_epochs(compiled, settings, dataset, state):
        check_finite(report, settings)
        state = report.state
        seconds += report.seconds
        accuracy = float(np.mean(report.metrics["accuracy"]))
        if config.stop_accuracy is not None and accuracy >= config.stop_accuracy:
            break
    return state, program, seconds


class _Workers(NamedTuple):
    """What is left of the workers, on the host, stacked along the first axis."""

    params: PyTree
    batch_stats: PyTree
    steps: Any


def _train_workers(
    config: SwapConfig, dataset: Dataset, params: PyTree, batch_stats: PyTree
) -> tuple[_Workers, Program, float]:
    # Of one device: workers do not know of each other.
    program = make_program(config.small, dataset, devices=jax.local_devices()[:1])
    states = [
        _worker_state(config, program, worker, params, batch_stats)
        for worker in range(config.workers)
    ]
    if config.layout == "sequential":
        compiled = compile_program(program, dataset)
        runs = [_run_alone(config, compiled, dataset, state) for state in states]
        finals = [jax.tree.map(np.asarray, _left(config, state)) for state, _ in runs]
        together = jax.tree.map(lambda *leaves: np.stack(leaves), *finals)
        return together, program, sum(seconds for _, seconds in runs)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    split, train = dataset.train, jax.vmap(program.train, in_axes=(0, None))
    if config.layout == "mesh":
        mesh = _worker_mesh(config)
        # Workers never speak to each other, so nothing is summed over the axis.
        train = jax.shard_map(
            train,
            mesh=mesh,
            in_specs=(P(WORKERS), P()),
            out_specs=P(WORKERS),
            check_vma=False,
        )
        stacked = jax.device_put(stacked, NamedSharding(mesh, P(WORKERS)))
        split = jax.device_put(split, NamedSharding(mesh, P()))
    final, seconds = _run_together(config, program, train, split, stacked)
    return jax.tree.map(np.asarray, _left(config, final)), program, seconds


def _worker_mesh(config: SwapConfig) -> Mesh:
    devices = jax.devices()
    if config.workers % len(devices):
        raise ValueError(
            f"workers={config.workers!r} cannot be shared equally by {len(devices)} "
            f"devices; allowed are multiples of {len(devices)}"
        )
    return Mesh(np.array(devices), (WORKERS,))


def _worker_state(
    config: SwapConfig,
    program: Program,
    worker: int,
    params: PyTree,
    batch_stats: PyTree,
) -> TrainState:
    """The state of a worker, whose number is in the key of its data."""
    small = config.small
    state = program.init(small.seed, small.learning_rate, hyperparameters_of(small))
    state = program.restart(state, params, batch_stats)
    return state._replace(key=jax.random.fold_in(state.key, worker))


def _run_alone(
    config: SwapConfig, compiled: CompiledProgram, dataset: Dataset, state: TrainState
) -> tuple[TrainState, float]:
    seconds = 0.0
    for report in run_epochs(compiled, config.small, dataset, state):
        check_finite(report, config.small)
        state = report.state
        seconds += report.seconds
    return state, seconds


def _run_together(
    config: SwapConfig,
    program: Program,
    train: Callable[..., tuple[TrainState, Metrics]],
    split: Split,
    states: TrainState,
) -> tuple[TrainState, float]:
    compiled = jax.jit(train, donate_argnums=0).lower(states, split).compile()
    start, losses = time.perf_counter(), []
    reports = config.small.epochs // config.small.epochs_per_report
    for _ in range(reports * program.calls_per_report):
        states, metrics = compiled(states, split)
        losses.append(metrics["loss"])
    jax.block_until_ready(states)
    seconds = time.perf_counter() - start
    for call, found in enumerate(jax.device_get(losses)):
        if not np.isfinite(found).all():
            raise DivergedError(
                f"the loss of a worker is not finite in call {call} with optimizer="
                f"{config.small.optimizer!r} and learning_rate="
                f"{config.small.learning_rate!r}; a smaller learning rate may help"
            )
    return states, seconds


def _left(config: SwapConfig, state: TrainState) -> _Workers:
    """The weights that an evaluation takes, and the rest that is needed."""
    weights = state.average if config.small.ema_decay else state.params
    return _Workers(weights, state.batch_stats, state.step)


def _model(config: RunConfig, dataset: Dataset) -> Any:
    return models.build(
        config.model,
        dataset.num_classes,
        config.compute_dtype,
        config.ghost_batch_size,
    )


def _evaluated(
    config: RunConfig, dataset: Dataset, params: PyTree, batch_stats: PyTree
) -> Network:
    variables = {"params": params, "batch_stats": batch_stats}
    model = _model(config, dataset)
    standardise = preprocessing.standardisation(config.standardisation)
    return Network(
        params,
        batch_stats,
        evaluate_split(model, variables, dataset.train, standardise),
        evaluate_split(model, variables, dataset.test, standardise),
    )
