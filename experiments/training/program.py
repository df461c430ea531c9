"""A run as pure functions: the state, and the compiled call for whole epochs.

The learning rate, the L2 factor and the float options of the optimizer are part of the
state, so that all trials of a search share one compiled program, in sequence or under
``vmap``.
"""

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from experiments import models
from experiments.config import RunConfig
from experiments.data import AnyDataset, Split, Stream
from experiments.training import meshes
from experiments.training.batch_statistics import recomputed_statistics
from experiments.training.evaluation import (
    EVALUATION_BATCH_SIZE,
    Evaluation,
    batches_of,
    evaluate_split,
)
from experiments.training.feeding import CallShape, Feed, make_feed
from experiments.training.hyperparameters import hyperparameters_of
from experiments.training.processes import is_first
from experiments.training.state import TrainState
from experiments.training.step import Metrics, TrainStep, make_step

PyTree = Any

_log = logging.getLogger(__name__)

MOST_LOST = 0.05  # share of the passes that may be lost without a warning
MOST_IMAGES = 50_000  # images of a stream, for the statistics of averaged weights


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A run as pure functions, see `make_program`.

    Attributes:
      config: settings of the run.
      step: one step of the run.
      mesh: mesh of devices, with the axis types of the configuration.
      example: one image, or an array shaped like one.
      examples: number of training images.
      batch_size: examples per step.
      steps_per_call: steps per call of ``train``; examples that are left over after the
        last batch of a call are used by the next call.
      calls_per_report: calls of ``train`` per ``config.epochs_per_report`` epochs.
      streamed: whether the training split is streamed.
    """

    config: RunConfig
    step: TrainStep
    mesh: Mesh
    example: jax.Array
    examples: int
    batch_size: int
    steps_per_call: int
    calls_per_report: int
    streamed: bool

    @property
    def gradient_equivalents(self) -> float:
        """Mean cost of a step, in gradients."""
        return self.step.gradient_equivalents

    def init(
        self,
        seed: int,
        learning_rate: float,
        hyperparameters: Mapping[str, float] | None = None,
    ) -> TrainState:
        """The state before the first step.

        Args:
          seed: seed of the run.
          learning_rate: peak of the schedule.
          hyperparameters: values that differ from those of the configuration.
        """
        given = {**hyperparameters_of(self.config), **(hyperparameters or {})}
        state = self.step.init(seed, learning_rate, given, self.example)
        meshes.report_copies(self.mesh, state.params)
        return meshes.place(state, self._shardings(state))

    def restart(
        self, state: TrainState, params: PyTree, batch_stats: PyTree
    ) -> TrainState:
        """A state before the first step, with other weights and statistics."""
        state = self.step.restart(state, params, batch_stats)
        return meshes.place(state, self._shardings(state))

    def train(self, state: TrainState, split: Split) -> tuple[TrainState, Metrics]:
        """The state after ``steps_per_call`` steps, and the metrics of each, stacked.

        Args:
          state: the state before these steps.
          split: the training split, or the batches of the call if it is streamed.
        """
        call = self._train_on_batches if self.streamed else self._train_on_split
        if self.config.axis_types != "explicit":
            return call(state, split)
        out = (self._shardings(state), meshes.replicated(self.mesh))
        return jax.sharding.auto_axes(call, out_sharding=out)(state, split)

    def feed(self, split: Split | Stream) -> Feed:
        """The inputs of the calls of ``train`` for a training split."""
        micro_batch_size = self.batch_size // self.config.micro_batches
        shape = CallShape(
            self.steps_per_call, self.config.micro_batches, micro_batch_size
        )
        return make_feed(split, shape, self.mesh)

    def statistics(self, state: TrainState, train: Split | Stream) -> PyTree:
        """Batch statistics of the weights that evaluation takes.

        Those of the last weights have been measured in training. An average of weights
        is another network: its statistics are the means over batches of training
        images, without augmentation; of a stream, over whole batches of its first
        50,000.
        """
        params = self.step.evaluated_params(state)
        if params is state.params or not state.batch_stats:
            return state.batch_stats
        size = min(EVALUATION_BATCH_SIZE, _count(train))
        most = None
        if not isinstance(train, Split):
            # Whole batches, equal on all devices: padding must not count.
            devices = self.step.mesh.size
            size = max(size // devices, 1) * devices
            most = min(_count(train), MOST_IMAGES) // size
        batches = batches_of(train, size, self.step.mesh)
        batches = itertools.islice(batches, most)
        params, before = self._within((params, state.batch_stats))
        model, standardize = self.step.model_of_whole_batches, self.step.standardize
        return recomputed_statistics(model, params, before, batches, standardize)

    def evaluate(
        self,
        state: TrainState,
        split: Split | Stream,
        batch_stats: PyTree | None = None,
    ) -> Evaluation:
        """Loss and accuracy on a split, batch by batch.

        Args:
          state: state of the run.
          split: what to evaluate on.
          batch_stats: from `statistics`; by default those of the last weights.

        Raises:
          ValueError: if statistics exist but are not given for averaged weights.
        """
        params = self.step.evaluated_params(state)
        if batch_stats is None:
            if state.batch_stats and params is not state.params:
                raise ValueError(
                    "batch_stats=None suits the last weights, not an average of them, "
                    "which has statistics of its own: give Program.statistics(...)"
                )
            batch_stats = state.batch_stats
        variables = self._within({"params": params, "batch_stats": batch_stats})
        return evaluate_split(
            self.step.model, variables, split, self.step.standardize, self.step.mesh
        )

    def _within(self, tree: PyTree) -> PyTree:
        """The same arrays on the mesh of the step."""
        return jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(self.step.mesh, x.sharding.spec)),
            tree,
        )

    def _shardings(self, state: TrainState) -> TrainState:
        return jax.tree.map(
            lambda sharding: NamedSharding(self.mesh, sharding.spec),
            self.step.shardings(state),
        )

    def _train_on_split(
        self, state: TrainState, split: Split
    ) -> tuple[TrainState, Metrics]:
        def step_on(
            state: TrainState, rows: jax.Array | None
        ) -> tuple[TrainState, Metrics]:
            if rows is None:
                parts = _in_parts(split, self.config.micro_batches)
                return self.step.update(state, parts)
            return self.step.update(state, jax.tree.map(lambda x: x[rows], split))

        rows = self.rows(state, self.steps_per_call)
        if self.steps_per_call == 1:  # a scan, even of one step, is slow on CPUs
            return _stacked(step_on(state, None if rows is None else rows[0]))
        return jax.lax.scan(step_on, state, rows, length=self.steps_per_call)

    def _train_on_batches(
        self, state: TrainState, batches: Split
    ) -> tuple[TrainState, Metrics]:
        if self.steps_per_call == 1:
            first = jax.tree.map(lambda x: x[0], batches)
            return _stacked(self.step.update(state, first))
        return jax.lax.scan(self.step.update, state, batches)

    def rows(self, state: TrainState, steps: int) -> jax.Array | None:
        """The rows of the examples of the next steps, one permutation per epoch.

        Returns:
          Indices by step, micro-batch and example; None where a batch is the whole
          training set, in its order.
        """
        if self.batch_size == self.examples:
            return None
        first = state.step * self.batch_size
        count = steps * self.batch_size
        touched = -(-count // self.examples) + 1
        epochs = first // self.examples + jnp.arange(touched)
        order = jax.vmap(
            lambda epoch: jax.random.permutation(
                jax.random.fold_in(state.key, epoch), self.examples
            )
        )(epochs)
        rows = jax.lax.dynamic_slice(
            order.reshape(-1), [first % self.examples], [count]
        )
        return rows.reshape(steps, self.config.micro_batches, -1)


def make_program(
    config: RunConfig, dataset: AnyDataset, devices: Sequence[jax.Device] | None = None
) -> Program:
    """Builds the functions of a run; the batch is split over the devices.

    Args:
      config: settings of the run.
      dataset: the data to train on.
      devices: devices to use; all devices of all processes by default.

    Raises:
      ValueError: if the configuration has an unknown name, or a batch size or mesh that
        does not fit the training set or the devices.
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
    # Of a stream, only the next batch is on the device.
    steps_per_call = config.steps_per_call or (1 if streamed else steps_per_report)
    _check_steps_per_call(steps_per_call, steps_per_report)
    total_steps = config.epochs // config.epochs_per_report * steps_per_report
    _warn_of_lost_passes(config, examples, total_steps * batch_size)
    # Inside a call the compiler partitions the work, whatever the axis types outside.
    within = meshes.with_auto_axes(mesh)
    return Program(
        config=config,
        step=make_step(config, dataset.num_classes, total_steps, within),
        mesh=mesh,
        example=_example(dataset.train),
        examples=examples,
        batch_size=batch_size,
        steps_per_call=steps_per_call,
        calls_per_report=steps_per_report // steps_per_call,
        streamed=streamed,
    )


def _check_batch_size(
    config: RunConfig, batch_size: int, examples: int, devices: int
) -> None:
    given = f"batch_size={config.batch_size!r}"
    if batch_size > examples:
        raise ValueError(
            f"{given} exceeds the training set; allowed are 1 to {examples}, or None "
            "for the whole set"
        )
    parts = config.micro_batches
    if batch_size % (parts * devices):
        raise ValueError(
            f"{given} gives batches of {batch_size}, which cannot be split equally "
            f"with devices={devices} and micro_batches={parts}; allowed are multiples "
            f"of {parts * devices}"
        )
    together = config.ghost_batch_size
    if together is not None and batch_size // parts % together:
        raise ValueError(
            f"ghost_batch_size={together!r} must divide the {batch_size // parts} "
            "examples of a micro-batch, or be None for all of them"
        )


def _warn_of_lost_passes(config: RunConfig, examples: int, used: int) -> None:
    asked = config.epochs * examples
    if 1 - used / asked > MOST_LOST and is_first():
        _log.warning(
            f"batch_size={config.batch_size!r} leaves {used / examples:.1f} of "
            f"epochs={config.epochs!r} passes: the steps up to a report are rounded "
            f"down. A greater epochs_per_report than {config.epochs_per_report!r}, or "
            f"a batch size that divides the {examples} training examples, loses less"
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
    """One image, or an array shaped like one."""
    if isinstance(train, Split):
        return train.images[:1]
    return jnp.zeros([1, *train.shape], jnp.uint8)


def _in_parts(split: Split, parts: int) -> Split:
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), split)


def _stacked(outcome: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
    """The result of one step, in the form of a scan over one step."""
    state, metrics = outcome
    return state, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
