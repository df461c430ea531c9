"""Stochastic weight averaging in parallel (Gupta, Serrano, DeCoste, arXiv 2001.02312).

1. All devices train one network with large batches, until a training accuracy, or an
   epoch.
2. Workers continue from there, each with small batches in its own order, a fresh
   optimizer state, and no synchronization.
3. The workers' weights are averaged, and the statistics of batch normalization
   recomputed on the training images.

The first two phases are ordinary runs, so SWAP works with any optimizer.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import models
from experiments.config import RunConfig
from experiments.data import Dataset, preprocessing
from experiments.swap.config import SwapConfig
from experiments.swap.workers import train_workers
from experiments.training import (
    Evaluation,
    Program,
    TrainState,
    check_finite,
    compile_program,
    evaluate_split,
    hyperparameters_of,
    make_program,
    run_epochs,
)
from experiments.training.batch_statistics import recomputed_statistics
from experiments.training.evaluation import batches_of

PyTree = Any


class Network(NamedTuple):
    """Weights with their statistics, loss and accuracy.

    Attributes:
      params: the weights.
      batch_stats: statistics of batch normalization.
      train: loss and accuracy on the training images.
      test: likewise on the test images.
    """

    params: PyTree
    batch_stats: PyTree
    train: Evaluation
    test: Evaluation


class SwapResult(NamedTuple):
    """The networks that the phases end with, and the cost.

    Attributes:
      large: the network after the first phase.
      workers: the network of each worker after the second phase.
      averaged: the network of the averaged weights.
      large_steps: steps of the first phase.
      small_steps: steps of each worker.
      gradients: gradients of single images, in gradient-equivalents, in the first phase
        and of all workers together.
      seconds: time of each phase, the second of all workers together.
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
      DivergedError: if a loss or a weight is not finite.
      ValueError: if the devices cannot share workers or a batch equally, or a
        configuration is wrong.
    """
    evaluate = functools.partial(_evaluated, config.large, dataset)
    large, program, large_seconds = _train_large(config, dataset)
    large_cost = program.gradient_equivalents * program.batch_size * int(large.step)
    # Workers start from the weights on which the first phase is evaluated.
    start = program.step.evaluated_params(large)
    statistics = program.statistics(large, dataset.train)
    start, statistics = jax.device_get((start, statistics))
    workers, worker, worker_seconds = train_workers(config, dataset, start, statistics)
    small_steps = int(workers.steps[0])
    small_cost = worker.gradient_equivalents * worker.batch_size * small_steps

    def measured(params: PyTree) -> PyTree:
        return recomputed_statistics(
            _model(config.large, dataset),
            params,
            statistics,
            batches_of(dataset.train, worker.batch_size),
            preprocessing.standardization(config.large.standardization),
        )

    begin = time.perf_counter()
    averaged = jax.tree.map(lambda leaf: np.mean(leaf, axis=0), workers.params)
    new_statistics = measured(averaged)
    averaging_seconds = time.perf_counter() - begin
    finals = [
        jax.tree.map(lambda x, row=row: x[row], workers[:2])
        for row in range(config.workers)
    ]
    if workers.own_averages:
        finals = [(params, measured(params)) for params, _ in finals]
    return SwapResult(
        large=evaluate(start, statistics),
        workers=[evaluate(*final) for final in finals],
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
        epoch = report.number * settings.epochs_per_report
        if config.stop_epoch is not None and epoch >= config.stop_epoch:
            break
    return state, program, seconds


def _model(config: RunConfig, dataset: Dataset) -> Any:
    # Without ghost batches, which matter in training only: evaluation uses the
    # statistics unmodified, and they are recomputed batch by batch.
    return models.build(config.model, dataset.num_classes, config.compute_dtype)


def _evaluated(
    config: RunConfig, dataset: Dataset, params: PyTree, batch_stats: PyTree
) -> Network:
    variables = {"params": params, "batch_stats": batch_stats}
    model = _model(config, dataset)
    standardize = preprocessing.standardization(config.standardization)
    return Network(
        params,
        batch_stats,
        evaluate_split(model, variables, dataset.train, standardize),
        evaluate_split(model, variables, dataset.test, standardize),
    )
