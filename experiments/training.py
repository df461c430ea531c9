"""The training loop: one functional state, one compiled call for whole epochs.

`make_program` turns a configuration into pure functions; `run_epochs` drives them.
The learning rate is part of the state, so that a grid of learning rates shares one
compiled program, one after the other or under ``vmap``.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nlcg_optax
from experiments import models, optimizers, schedules
from experiments.config import RunConfig
from experiments.data import Dataset, Split

PyTree = Any
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that changes during a run, and what tells runs of a grid apart.

    Attributes:
      step: steps taken.
      params: the weights.
      batch_stats: statistics of batch normalisation; empty if the model has none.
      opt_state: state of the optimiser.
      learning_rate: peak of the schedule.
      key: of the order of the data.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    learning_rate: jax.Array
    key: jax.Array


class Evaluation(NamedTuple):
    """Loss, without the L2 term, and accuracy on a split."""

    loss: jax.Array
    accuracy: jax.Array


class Program(NamedTuple):
    """A run as pure functions.

    Attributes:
      init: from a seed and a peak learning rate to the state before the first step.
      train: from a state and the training split to the state after
        ``config.epochs_per_report`` epochs and the metrics of each step, stacked.
      evaluate: from a state and a split to loss and accuracy.
      steps_per_epoch: steps in an epoch.
      gradient_equivalents: mean cost of a step.
    """

    init: Callable[[int, float], TrainState]
    train: Callable[[TrainState, Split], tuple[TrainState, Metrics]]
    evaluate: Callable[[TrainState, Split], Evaluation]
    steps_per_epoch: int
    gradient_equivalents: float


class Report(NamedTuple):
    """What `run_epochs` yields after each compiled call.

    Attributes:
      state: the state so far; the next call takes it over.
      metrics: of each step of the call, as NumPy vectors.
      seconds: that the call took, without compilation.
    """

    state: TrainState
    metrics: dict[str, np.ndarray]
    seconds: float


class DivergedError(FloatingPointError):
    """The training loss is no longer finite."""


def make_program(config: RunConfig, dataset: Dataset) -> Program:
    """Builds the functions of a run; the batch is split over all devices.

    Raises:
      ValueError: if the configuration has an unknown name, or a batch size that the
        training set or the devices do not allow.
    """
    examples = dataset.train.labels.shape[0]
    batch_size = examples if config.batch_size is None else config.batch_size
    _check_batch_size(config.batch_size, batch_size, examples, jax.device_count())
    steps_per_epoch = examples // batch_size
    total_steps = config.epochs * steps_per_epoch
    model = models.build(config.model, dataset.num_classes)

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    replicated, over_data = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def schedule_of(peak: float | jax.Array) -> optax.Schedule:
        return schedules.build(config.schedule, peak, total_steps)

    def optimizer_of(peak: float | jax.Array) -> optimizers.Optimizer:
        return optimizers.build(
            config.optimizer, schedule_of(peak), config.optimizer_options
        )

    optimizer = optimizer_of(config.learning_rate)

    def init(seed: int, learning_rate: float) -> TrainState:
        init_key, data_key = jax.random.split(jax.random.key(seed))
        variables = _init_model(model, init_key, dataset.train.images[:1])
        params = variables["params"]
        state = TrainState(
            step=jnp.zeros([], jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.transformation.init(params),
            learning_rate=jnp.asarray(learning_rate, jnp.float32),
            key=data_key,
        )
        return jax.device_put(state, replicated)

    def step(state: TrainState, batch: Split) -> tuple[TrainState, Metrics]:
        batch = jax.lax.with_sharding_constraint(batch, over_data)

        def loss_fn(params: PyTree) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:
            logits, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                batch.images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = _cross_entropy(logits, batch.labels) + _l2(config.l2, params)
            accuracy = _accuracy(logits, batch.labels)
            return loss, (updated.get("batch_stats", {}), accuracy)

        (loss, (batch_stats, accuracy)), grads = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params)
        extras = {"value": loss, "value_fn": lambda params: loss_fn(params)[0]}
        updates, opt_state = optax.with_extra_args_support(
            optimizer_of(state.learning_rate).transformation
        ).update(
            grads,
            state.opt_state,
            state.params,
            **{name: extras[name] for name in optimizer.extras},
        )
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": schedule_of(state.learning_rate)(state.step),
            **nlcg_optax.diagnostics(opt_state),
        }
        state = state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    def epoch(
        state: TrainState, split: Split, number: jax.Array
    ) -> tuple[TrainState, Metrics]:
        if steps_per_epoch == 1 and batch_size == examples:
            state, metrics = step(state, split)
            return state, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
        order = jax.random.permutation(jax.random.fold_in(state.key, number), examples)
        order = order[: steps_per_epoch * batch_size]

        def step_on(state: TrainState, rows: jax.Array) -> tuple[TrainState, Metrics]:
            return step(state, jax.tree.map(lambda x: x[rows], split))

        return jax.lax.scan(step_on, state, order.reshape(steps_per_epoch, batch_size))

    def train(state: TrainState, split: Split) -> tuple[TrainState, Metrics]:
        first = state.step // steps_per_epoch
        state, metrics = jax.lax.scan(
            lambda state, number: epoch(state, split, number),
            state,
            first + jnp.arange(config.epochs_per_report),
        )
        return state, jax.tree.map(lambda x: x.reshape(-1), metrics)

    def evaluate(state: TrainState, split: Split) -> Evaluation:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return _evaluate(model, variables, split)

    return Program(
        init, train, evaluate, steps_per_epoch, optimizer.gradient_equivalents
    )


class CompiledProgram(NamedTuple):
    """A `Program` with its training call compiled.

    Attributes:
      program: the functions.
      train: the compiled call, which takes over the memory of the state.
      compile_seconds: tracing included.
    """

    program: Program
    train: Callable[[TrainState, Split], tuple[TrainState, Metrics]]
    compile_seconds: float


def compile_program(program: Program, dataset: Dataset) -> CompiledProgram:
    """Compiles the training call ahead of time, so that no timing holds it."""
    start = time.perf_counter()
    compiled = (
        jax.jit(program.train, donate_argnums=0)
        .lower(program.init(0, 1.0), dataset.train)
        .compile()
    )
    return CompiledProgram(program, compiled, time.perf_counter() - start)


def run_epochs(
    compiled: CompiledProgram, config: RunConfig, dataset: Dataset, state: TrainState
) -> Iterator[Report]:
    """Trains for ``config.epochs`` epochs, a report each ``epochs_per_report``."""
    for _ in range(config.epochs // config.epochs_per_report):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled.train(state, dataset.train))
        seconds = time.perf_counter() - start
        yield Report(state, jax.device_get(metrics), seconds)


def check_finite(report: Report, config: RunConfig) -> None:
    """Raises DivergedError if a loss of the report is not finite."""
    losses = report.metrics["loss"]
    if np.isfinite(losses).all():
        return
    bad = int(np.argmin(np.isfinite(losses)))
    step = int(report.state.step) - len(losses) + bad
    raise DivergedError(
        f"the loss became {losses[bad]} at step {step} with optimizer="
        f"{config.optimizer!r} and learning_rate={config.learning_rate!r}; the run was "
        "stopped; a smaller learning rate may help"
    )


def _check_batch_size(
    given: int | None, batch_size: int, examples: int, devices: int
) -> None:
    if batch_size > examples:
        raise ValueError(
            f"batch_size={given!r} exceeds the training set; allowed are 1 to "
            f"{examples}, or None for all of it"
        )
    if batch_size % devices:
        raise ValueError(
            f"batch_size={given!r} gives batches of {batch_size}, which {devices} "
            f"devices cannot share equally; allowed are multiples of {devices}"
        )


@functools.partial(jax.jit, static_argnums=0)
def _init_model(model: nn.Module, key: jax.Array, images: jax.Array) -> PyTree:
    return model.init(key, images, train=False)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(model: nn.Module, variables: PyTree, split: Split) -> Evaluation:
    logits = model.apply(variables, split.images, train=False)
    return Evaluation(
        _cross_entropy(logits, split.labels), _accuracy(logits, split.labels)
    )


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(
        optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    )


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def _l2(factor: float, params: PyTree) -> jax.Array:
    # Batch normalisation takes no part, as in arXiv 1812.02886.
    squares = [
        jnp.sum(jnp.square(leaf))
        for path, leaf in jax.tree.leaves_with_path(params)
        if "BatchNorm" not in jax.tree_util.keystr(path)
    ]
    return 0.5 * factor * sum(squares, start=jnp.zeros([]))
