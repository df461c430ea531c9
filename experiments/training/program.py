"""A run as pure functions: the state, and the compiled call for whole epochs.

The learning rate, the L2 factor and the float options of the optimizer are part of the
state, so that all trials of a search share one compiled program, one after the other or
under ``vmap``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from experiments import models
from experiments.config import RunConfig
from experiments.data import AnyDataset, Split, Stream
from experiments.training import meshes
from experiments.training.evaluation import Evaluation, evaluate_split
from experiments.training.feeding import CallShape, Feed, make_feed
from experiments.training.hyperparameters import hyperparameters_of
from experiments.training.step import Metrics, TrainState, make_step

PyTree = Any


class Program(NamedTuple):
    """A run as pure functions.

    Attributes:
      init: from a seed, a peak learning rate and, where they are not those of the
        program, further hyperparameters to the state before the first step.
      restart: from a state, weights and statistics of batch normalization to a state
        before the first step that begins there.
      train: from a state and the training split, or the batches of a call, to the
        state after ``steps_per_call`` steps and the metrics of each step, stacked.
      evaluate: from a state and a split to loss and accuracy, batch by batch.
      feed: from a training split to what the calls of ``train`` take.
      steps_per_call: steps in a call of ``train``; the examples that are left over
        when the last batch of a call is full are taken by the next call.
      calls_per_report: calls of ``train`` in ``config.epochs_per_report`` epochs.
      batch_size: examples in a step.
      gradient_equivalents: mean cost of a step.
    """

    init: Callable[..., TrainState]
    restart: Callable[[TrainState, PyTree, PyTree], TrainState]
    train: Callable[[TrainState, Split], tuple[TrainState, Metrics]]
    evaluate: Callable[[TrainState, Split | Stream], Evaluation]
    feed: Callable[[Split | Stream], Feed]
    steps_per_call: int
    calls_per_report: int
    batch_size: int
    gradient_equivalents: float


def make_program(
    config: RunConfig, dataset: AnyDataset, devices: Sequence[jax.Device] | None = None
) -> Program:
    """Builds the functions of a run; the batch is split over the devices.

    Args:
      config: of the run.
      dataset: what to train on.
      devices: all devices of all processes by default.

    Raises:
      ValueError: if the configuration has an unknown name, or a batch size that the
        training set or the devices do not allow, or a mesh that is not theirs.
    """
    streamed = not isinstance(dataset.train, Split)
    examples = _count(dataset.train)
    batch_size = examples if config.batch_size is None else config.batch_size
    mesh = meshes.make_mesh(
        config.data_devices,
        config.shard_devices,
        axis_types=config.axis_types,
        devices=devices,
    )
    _check_batch_size(config, batch_size, examples, mesh.size)
    _check_model(config, dataset)
    steps_per_report = config.epochs_per_report * examples // batch_size
    # Of a stream no more than needed is on the device.
    steps_per_call = config.steps_per_call or (1 if streamed else steps_per_report)
    _check_steps_per_call(steps_per_call, steps_per_report)
    total_steps = config.epochs // config.epochs_per_report * steps_per_report
    # Within a call the compiler splits the work, whatever the types show outside.
    within = meshes.with_auto_axes(mesh)
    step = make_step(config, dataset.num_classes, total_steps, within)

    def shardings(state: TrainState) -> TrainState:
        return jax.tree.map(
            lambda sharding: NamedSharding(mesh, sharding.spec), step.shardings(state)
        )

    def init(
        seed: int,
        learning_rate: float,
        hyperparameters: Mapping[str, float] | None = None,
    ) -> TrainState:
        given = {**hyperparameters_of(config), **(hyperparameters or {})}
        state = step.init(seed, learning_rate, given, _example(dataset.train))
        meshes.report_copies(mesh, state.params)
        return meshes.place(state, shardings(state))

    def restart(state: TrainState, params: PyTree, batch_stats: PyTree) -> TrainState:
        state = step.restart(state, params, batch_stats)
        return meshes.place(state, shardings(state))

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
                return step.update(state, _in_parts(split, config.micro_batches))
            return step.update(state, jax.tree.map(lambda x: x[rows], split))

        rows = None if batch_size == examples else rows_of_call(state)
        if steps_per_call == 1:  # a scan, even of one step, is slow on CPUs
            state, metrics = step_on(state, None if rows is None else rows[0])
            return state, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
        return jax.lax.scan(step_on, state, rows, length=steps_per_call)

    def train_on_batches(
        state: TrainState, batches: Split
    ) -> tuple[TrainState, Metrics]:
        if steps_per_call == 1:
            state, metrics = step.update(state, jax.tree.map(lambda x: x[0], batches))
            return state, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
        return jax.lax.scan(step.update, state, batches)

    call = train_on_batches if streamed else train

    def call_on_explicit_axes(
        state: TrainState, split: Split
    ) -> tuple[TrainState, Metrics]:
        out = (shardings(state), meshes.replicated(mesh))
        return jax.sharding.auto_axes(call, out_sharding=out)(state, split)

    def feed(split: Split | Stream) -> Feed:
        micro_batch_size = batch_size // config.micro_batches
        shape = CallShape(steps_per_call, config.micro_batches, micro_batch_size)
        return make_feed(split, shape, mesh)

    def evaluate(state: TrainState, split: Split | Stream) -> Evaluation:
        params = state.average if config.ema_decay else state.params
        variables = {"params": params, "batch_stats": state.batch_stats}
        variables = jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(within, x.sharding.spec)),
            variables,
        )
        return evaluate_split(step.model, variables, split, step.standardize, within)

    return Program(
        init,
        restart,
        call_on_explicit_axes if config.axis_types == "explicit" else call,
        evaluate,
        feed,
        steps_per_call,
        steps_per_report // steps_per_call,
        batch_size,
        step.gradient_equivalents,
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
    together = config.ghost_batch_size
    if together is not None and batch_size // parts % together:
        raise ValueError(
            f"ghost_batch_size={together!r} must divide the {batch_size // parts} "
            "examples of a micro-batch, or be None for all of them"
        )


def _check_model(config: RunConfig, dataset: AnyDataset) -> None:
    is_text = _example(dataset.train).ndim == 2
    if is_text != (config.model in models.OF_TEXT):
        takes, holds = ("text", "images") if not is_text else ("images", "text")
        raise ValueError(
            f"model={config.model!r} takes {takes}, but dataset={config.dataset!r} "
            f"holds {holds}; models of text are {sorted(models.OF_TEXT)}"
        )
    if is_text and config.augmentation != "none":
        raise ValueError(
            f"augmentation={config.augmentation!r} must be 'none' for text"
        )


def _check_steps_per_call(steps_per_call: int, steps_per_report: int) -> None:
    if steps_per_report % steps_per_call:
        raise ValueError(
            f"steps_per_call={steps_per_call!r} must divide the {steps_per_report} "
            "steps between two reports, or be None for all of them"
        )


def _count(train: Split | Stream) -> int:
    return train.labels.shape[0] if isinstance(train, Split) else train.examples


def _example(train: Split | Stream) -> jax.Array:
    """One image, or what is shaped like one."""
    if isinstance(train, Split):
        return train.images[:1]
    return jnp.zeros([1, *train.shape], jnp.uint8)


def _in_parts(split: Split, parts: int) -> Split:
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), split)
