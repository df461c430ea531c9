"""The second phase of SWAP: workers that do not communicate.

They run one after the other, vectorized on one device, or along a mesh axis.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data import Dataset, Split
from experiments.swap.config import SwapConfig
from experiments.training import (
    CompiledProgram,
    Metrics,
    Program,
    TrainState,
    check_finite,
    compile_program,
    diverged,
    hyperparameters_of,
    make_program,
    run_epochs,
)

PyTree = Any

WORKERS = "workers"  # axis of the mesh


class Workers(NamedTuple):
    """The results of all workers, on the host, stacked along the first axis.

    Attributes:
      params: the weights that evaluation takes.
      batch_stats: statistics of batch normalization of the last weights.
      steps: numbers of steps.
      own_averages: whether the weights are averages over each worker's own steps.
    """

    params: PyTree
    batch_stats: PyTree
    steps: Any
    own_averages: bool


def train_workers(
    config: SwapConfig, dataset: Dataset, params: PyTree, batch_stats: PyTree
) -> tuple[Workers, Program, float]:
    """Trains the workers.

    Args:
      config: settings of both phases.
      dataset: what to train on.
      params: weights that all of them start from.
      batch_stats: statistics of batch normalization, likewise.

    Returns:
      Their final weights, their program, and the seconds of all of them together.

    Raises:
      DivergedError: if a loss or a weight is not finite.
      ValueError: if the devices of a mesh cannot share the workers equally.
    """
    # On one device, since workers do not communicate.
    program = make_program(config.small, dataset, devices=jax.local_devices()[:1])
    states = [
        _worker_state(config, program, worker, params, batch_stats)
        for worker in range(config.workers)
    ]
    evaluated_params = program.step.evaluated_params
    own_averages = evaluated_params(states[0]) is not states[0].params

    def left(state: TrainState) -> tuple[PyTree, PyTree, jax.Array]:
        return evaluated_params(state), state.batch_stats, state.step

    if config.layout == "sequential":
        compiled = compile_program(program, dataset)
        runs = [_run_alone(config, compiled, dataset, state) for state in states]
        finals = [jax.device_get(left(state)) for state, _ in runs]
        together = jax.tree.map(lambda *leaves: np.stack(leaves), *finals)
        seconds = sum(seconds for _, seconds in runs)
        return Workers._make((*together, own_averages)), program, seconds
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    split, train = dataset.train, jax.vmap(program.train, in_axes=(0, None))
    if config.layout == "mesh":
        mesh = _worker_mesh(config)
        # Workers do not communicate, so nothing is summed over the axis.
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
    together = jax.device_get(jax.vmap(left)(final))
    return Workers._make((*together, own_averages)), program, seconds


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
    """The initial state of a worker; its data key depends on its number."""
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
            what = f"the loss of a worker is not finite in call {call}"
            raise diverged(what, config.small)
    # The loss of a step is that of the weights before it.
    leaves = jax.tree.leaves(jax.device_get(states.params))
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise diverged("weights of a worker became infinite or nan", config.small)
    return states, seconds
