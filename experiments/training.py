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
from experiments import models, optimizers, preprocessing, schedules
from experiments.config import RunConfig
from experiments.data import Dataset, Split
from experiments.micro_batches import mean_gradient, mean_loss
from experiments.weight_decay import decay_mask

PyTree = Any
Metrics = dict[str, jax.Array]

EVALUATION_BATCH_SIZE = 1000


class TrainState(NamedTuple):
    """Everything that changes during a run, and what tells runs of a grid apart.

    Attributes:
      step: steps taken.
      params: the weights.
      average: exponential average of the weights for evaluation; empty without.
      batch_stats: statistics of batch normalisation; empty if the model has none.
      opt_state: state of the optimiser.
      learning_rate: peak of the schedule.
      key: of the order of the data and the augmentation.
    """

    step: jax.Array
    params: PyTree
    average: PyTree
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
        ``steps_per_call`` steps and the metrics of each step, stacked.
      evaluate: from a state and a split to loss and accuracy, batch by batch.
      steps_per_call: steps in a call of ``train``; the examples that are left over
        when the last batch of a call is full are taken by the next call.
      calls_per_report: calls of ``train`` in ``config.epochs_per_report`` epochs.
      batch_size: examples in a step.
      gradient_equivalents: mean cost of a step.
    """

    init: Callable[[int, float], TrainState]
    train: Callable[[TrainState, Split], tuple[TrainState, Metrics]]
    evaluate: Callable[[TrainState, Split], Evaluation]
    steps_per_call: int
    calls_per_report: int
    batch_size: int
    gradient_equivalents: float


class Report(NamedTuple):
    """What `run_epochs` yields after every ``config.epochs_per_report`` epochs.

    Attributes:
      state: the state so far; the next call takes it over.
      metrics: of each step since the last report, as NumPy vectors.
      seconds: that these steps took, without compilation.
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
    _check_batch_size(config, batch_size, examples, jax.device_count())
    steps_per_report = config.epochs_per_report * examples // batch_size
    steps_per_call = config.steps_per_call or steps_per_report
    _check_steps_per_call(steps_per_call, steps_per_report)
    total_steps = config.epochs // config.epochs_per_report * steps_per_report
    model = models.build(config.model, dataset.num_classes, config.compute_dtype)
    augment = preprocessing.augmentation(config.augmentation)

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, P())
    over_data = NamedSharding(mesh, P(None, "data"))  # of each micro-batch

    def schedule_of(peak: float | jax.Array) -> optax.Schedule:
        warmup = config.warmup_epochs
        fraction = None if warmup is None else warmup / config.epochs
        return schedules.build(config.schedule, peak, total_steps, fraction)

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
            average=jax.tree.map(jnp.copy, params) if config.ema_decay else (),
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.transformation.init(params),
            learning_rate=jnp.asarray(learning_rate, jnp.float32),
            key=data_key,
        )
        return jax.device_put(state, replicated)

    def loss_fn(
        params: PyTree, batch_stats: PyTree, batch: Split
    ) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.images,
            train=True,
            mutable=["batch_stats"],
        )
        losses = _cross_entropies(logits, batch.labels)
        loss = jnp.mean(losses) + _l2(config.l2, params)
        accuracy = jnp.mean(_hits(logits, batch.labels))
        return loss, (updated.get("batch_stats", {}), accuracy)

    def step(state: TrainState, batches: Split) -> tuple[TrainState, Metrics]:
        batches = jax.lax.with_sharding_constraint(batches, over_data)
        batches = batches._replace(images=prepare_images(state, batches.images))
        outcome, batch_stats = mean_gradient(
            loss_fn, state.params, state.batch_stats, batches
        )
        extras = {
            "value": outcome.loss,
            "value_fn": lambda params: mean_loss(
                loss_fn, params, state.batch_stats, batches
            ),
        }
        updates, opt_state = optax.with_extra_args_support(
            optimizer_of(state.learning_rate).transformation
        ).update(
            outcome.grads,
            state.opt_state,
            state.params,
            **{name: extras[name] for name in optimizer.extras},
        )
        metrics = {
            "loss": outcome.loss,
            "accuracy": outcome.accuracy,
            "learning_rate": schedule_of(state.learning_rate)(state.step),
            **nlcg_optax.diagnostics(opt_state),
        }
        params = optax.apply_updates(state.params, updates)
        state = state._replace(
            step=state.step + 1,
            params=params,
            average=_moved_average(config.ema_decay, state, params),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    def prepare_images(state: TrainState, images: jax.Array) -> jax.Array:
        _, key = jax.random.split(state.key)
        keys = jax.random.split(jax.random.fold_in(key, state.step), len(images))
        return jax.vmap(lambda key, x: preprocessing.standardise(augment(key, x)))(
            keys, images
        )

    def rows_of_call(state: TrainState) -> jax.Array:
        """The examples of each step of a call, out of one permutation an epoch."""
        first = state.step * batch_size
        touched = -(-steps_per_call * batch_size // examples) + 1
        epochs = first // examples + jnp.arange(touched)
        order = jax.vmap(
            lambda epoch: jax.random.permutation(
                jax.random.fold_in(state.key, epoch), examples
            )
        )(epochs)
        rows = jax.lax.dynamic_slice(
            order.reshape(-1), [first % examples], [steps_per_call * batch_size]
        )
        return rows.reshape(steps_per_call, config.micro_batches, -1)

    def train(state: TrainState, split: Split) -> tuple[TrainState, Metrics]:
        def step_on(
            state: TrainState, rows: jax.Array | None
        ) -> tuple[TrainState, Metrics]:
            if rows is None:
                return step(state, _in_parts(split, config.micro_batches))
            return step(state, jax.tree.map(lambda x: x[rows], split))

        rows = None if batch_size == examples else rows_of_call(state)
        if steps_per_call == 1:  # a scan, even of one step, is slow on CPUs
            state, metrics = step_on(state, None if rows is None else rows[0])
            return state, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
        return jax.lax.scan(step_on, state, rows, length=steps_per_call)

    def evaluate(state: TrainState, split: Split) -> Evaluation:
        params = state.average if config.ema_decay else state.params
        variables = {"params": params, "batch_stats": state.batch_stats}
        return _evaluate(model, variables, split)

    return Program(
        init,
        train,
        evaluate,
        steps_per_call,
        steps_per_report // steps_per_call,
        batch_size,
        optimizer.gradient_equivalents,
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
        calls = []
        for _ in range(compiled.program.calls_per_report):
            state, metrics = compiled.train(state, dataset.train)
            calls.append(metrics)
        jax.block_until_ready((state, calls))
        seconds = time.perf_counter() - start
        metrics = jax.tree.map(lambda *xs: np.concatenate(xs), *jax.device_get(calls))
        yield Report(state, metrics, seconds)


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
    config: RunConfig, batch_size: int, examples: int, devices: int
) -> None:
    given = f"batch_size={config.batch_size!r}"
    if batch_size > examples:
        raise ValueError(
            f"{given} exceeds the training set; allowed are 1 to {examples}, or None "
            "for all of it"
        )
    parts = config.micro_batches
    if batch_size % (parts * devices):
        raise ValueError(
            f"{given} gives batches of {batch_size}, which {devices} devices cannot "
            f"share equally in {parts} micro-batches; allowed are multiples of "
            f"{parts * devices}"
        )


def _check_steps_per_call(steps_per_call: int, steps_per_report: int) -> None:
    if steps_per_report % steps_per_call:
        raise ValueError(
            f"steps_per_call={steps_per_call!r} must divide the {steps_per_report} "
            "steps between two reports, or be None for all of them"
        )


@functools.partial(jax.jit, static_argnums=0)
def _init_model(model: nn.Module, key: jax.Array, images: jax.Array) -> PyTree:
    return model.init(key, preprocessing.standardise(images), train=False)


def _evaluate(model: nn.Module, variables: PyTree, split: Split) -> Evaluation:
    # No loop within the compiled call: on CPUs XLA is slow at convolutions in loops.
    examples = split.labels.shape[0]
    parts = [
        _evaluate_batch(
            model,
            variables,
            jax.tree.map(lambda x, at=at: x[at : at + EVALUATION_BATCH_SIZE], split),
        )
        for at in range(0, examples, EVALUATION_BATCH_SIZE)
    ]
    return jax.tree.map(lambda *sums: sum(sums) / examples, *parts)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_batch(model: nn.Module, variables: PyTree, batch: Split) -> Evaluation:
    """Sums, not means."""
    images = preprocessing.standardise(batch.images)
    logits = model.apply(variables, images, train=False)
    return Evaluation(
        jnp.sum(_cross_entropies(logits, batch.labels)),
        jnp.sum(_hits(logits, batch.labels)),
    )


def _in_parts(split: Split, parts: int) -> Split:
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), split)


def _moved_average(ema_decay: float, state: TrainState, params: PyTree) -> PyTree:
    """The average of the weights after a step to ``params``, as in arXiv 1812.02886."""
    if not ema_decay:
        return state.average
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(params, state.average, 1 - decay)


def _cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def _hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1) == labels


def _l2(factor: float, params: PyTree) -> jax.Array:
    squares = jax.tree.map(
        lambda leaf, decays: jnp.sum(jnp.square(leaf)) if decays else 0.0,
        params,
        decay_mask(params),
    )
    return 0.5 * factor * sum(jax.tree.leaves(squares), start=jnp.zeros([]))
