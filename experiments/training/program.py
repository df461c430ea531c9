"""A run as pure functions: the state, the step, and the compiled call for whole epochs.

The learning rate is part of the state, so that a grid of learning rates shares one
compiled program, one after the other or under ``vmap``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nlcg_optax
from experiments import models, optimizers, preprocessing, schedules
from experiments.config import RunConfig
from experiments.data import Dataset, Split
from experiments.micro_batches import mean_gradient, mean_loss
from experiments.training.evaluation import Evaluation, evaluate_split
from experiments.training.losses import cross_entropies, hits, l2

PyTree = Any
Metrics = dict[str, jax.Array]


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
        losses = cross_entropies(logits, batch.labels, config.label_smoothing)
        loss = jnp.mean(losses) + l2(config.l2, params)
        accuracy = jnp.mean(hits(logits, batch.labels))
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
        return evaluate_split(model, variables, split)

    return Program(
        init,
        train,
        evaluate,
        steps_per_call,
        steps_per_report // steps_per_call,
        batch_size,
        optimizer.gradient_equivalents,
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


def _in_parts(split: Split, parts: int) -> Split:
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), split)


def _moved_average(ema_decay: float, state: TrainState, params: PyTree) -> PyTree:
    """The average of the weights after a step to ``params``, as in arXiv 1812.02886."""
    if not ema_decay:
        return state.average
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(params, state.average, 1 - decay)
