"""One step as a pure function of the state and a batch, on a mesh of devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

import nlcg_optax
from experiments import models, optimizers, schedules
from experiments.config import RunConfig
from experiments.data import Split, preprocessing
from experiments.training import meshes
from experiments.training.losses import cross_entropies, hits, l2
from experiments.training.micro_batches import LossFn, Outcome, half_gradients
from experiments.training.on_batches import OnBatches, on_batches
from experiments.training.state import TrainState

PyTree = Any
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """A training step as pure functions, see `make_step`.

    Attributes:
      config: settings of the run.
      total_steps: length of the schedule.
      mesh: mesh of devices.
      model: the network.
      augment: function from a key and images to augmented images.
      standardize: function from raw images to the input of the model.
      build_optimizer: function from a name, a schedule and options to an optimizer.
      optimizer: optimizer built from plain numbers, to check them.
      on_batches: functions that compute quantities of a batch.
      losses: function from logits, labels and the label smoothing to the loss of each
        label.
    """

    config: RunConfig
    total_steps: int
    mesh: Mesh
    model: nn.Module
    augment: preprocessing.Augmentation
    standardize: Callable[[jax.Array], jax.Array]
    build_optimizer: Callable[..., optimizers.Optimizer]
    optimizer: optimizers.Optimizer
    on_batches: OnBatches
    losses: Callable[[jax.Array, jax.Array, float], jax.Array] = cross_entropies

    @property
    def gradient_equivalents(self) -> float:
        """Mean cost of a step, in gradients."""
        return self.optimizer.gradient_equivalents

    def init(
        self,
        seed: int,
        learning_rate: float,
        hyperparameters: Mapping[str, float],
        images: jax.Array,
    ) -> TrainState:
        """The state before the first step, not yet placed on the mesh.

        Args:
          seed: seed of the initial weights and of the run's key.
          learning_rate: peak of the schedule.
          hyperparameters: see `hyperparameters_of`.
          images: one image or more, which determine the shapes of the weights.
        """
        init_key, data_key = jax.random.split(jax.random.key(seed))
        variables = _init_model(self.model, init_key, self.standardize(images))
        params = variables["params"]
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            params=params,
            average=self._initial_average(params),
            batch_stats=variables.get("batch_stats", {}),
            opt_state=self._initial_opt_state(params),
            learning_rate=jnp.asarray(learning_rate, jnp.float32),
            hyperparameters={
                name: jnp.asarray(value, jnp.float32)
                for name, value in hyperparameters.items()
            },
            key=data_key,
        )

    def restart(
        self, state: TrainState, params: PyTree, batch_stats: PyTree
    ) -> TrainState:
        """A state before the first step, with other weights and statistics."""
        return state._replace(
            step=jnp.zeros([], jnp.int32),
            params=params,
            average=self._initial_average(params),
            batch_stats=batch_stats,
            opt_state=self._initial_opt_state(params),
        )

    def shardings(self, state: TrainState) -> TrainState:
        """The sharding of every leaf of a state, which may be abstract."""
        copied: Any = meshes.replicated(self.mesh)
        return TrainState(
            step=copied,
            params=meshes.shardings_of(self.mesh, state.params),
            average=meshes.shardings_of(self.mesh, state.average),
            batch_stats=jax.tree.map(lambda _: copied, state.batch_stats),
            opt_state=meshes.shardings_of(self.mesh, state.opt_state),
            learning_rate=copied,
            hyperparameters=jax.tree.map(lambda _: copied, state.hyperparameters),
            key=copied,
        )

    def update(self, state: TrainState, batches: Split) -> tuple[TrainState, Metrics]:
        """The next state and the metrics of a step.

        Args:
          state: the state before the step.
          batches: micro-batches, stacked along the first axis.
        """
        batches = self._prepare(state, batches, slice(None))
        outcome, half_grads, batch_stats = self._gradient(state, batches)
        extras = {
            "half_grads": half_grads,
            **self._functions_of_batch(state, batches),
        }
        return self.finish(state, outcome, batch_stats, extras)

    @property
    def model_of_whole_batches(self) -> nn.Module:
        """The network without ghost batches."""
        if hasattr(self.model, "ghost_batch_size"):
            return self.model.clone(ghost_batch_size=None)
        return self.model

    def evaluated_params(self, state: TrainState) -> PyTree:
        """The weights that evaluation takes: the last ones, or an average."""
        if self.config.ema_decay:
            return state.average
        if isinstance(state.opt_state, optax.contrib.ScheduleFreeState):
            return optax.contrib.schedule_free_eval_params(
                state.opt_state, state.params
            )
        return state.params

    def micro_step(
        self, state: TrainState, batch_stats: PyTree, batch: Split, index: jax.Array
    ) -> tuple[Outcome, PyTree]:
        """Loss, accuracy and gradient of one micro-batch, and the statistics after it.

        Args:
          state: state before the step.
          batch_stats: batch statistics after the previous micro-batch.
          batch: the micro-batch.
          index: its number within the step.
        """
        stacked = jax.tree.map(lambda x: x[None], batch)
        batches = self._prepare(state, stacked, index[None])
        return self.on_batches.gradient(
            self._batch_loss_fn(state), state.params, batch_stats, batches
        )

    def finish(
        self,
        state: TrainState,
        outcome: Outcome,
        batch_stats: PyTree,
        extras: Mapping[str, Any],
    ) -> tuple[TrainState, Metrics]:
        """The next state and the metrics, from the means over the micro-batches.

        Args:
          state: state before the step.
          outcome: the means.
          batch_stats: batch statistics after the last micro-batch.
          extras: what the optimizer takes besides the loss and its gradient.
        """
        # Sums over devices then have the sharding of the state.
        grads = meshes.constrain(
            outcome.grads, meshes.shardings_of(self.mesh, outcome.grads)
        )
        extras = {"value": outcome.loss, "grad": grads, **extras}
        updates, opt_state = optax.with_extra_args_support(
            self._optimizer_of(state).transformation
        ).update(
            grads,
            state.opt_state,
            state.params,
            **{name: extras[name] for name in self.optimizer.extras},
        )
        metrics = {
            "loss": outcome.loss,
            "label_loss": outcome.label_loss,
            "accuracy": outcome.accuracy,
            "learning_rate": self._schedule_of(state.learning_rate)(state.step),
            **nlcg_optax.diagnostics(opt_state),
        }
        params = optax.apply_updates(state.params, updates)
        state = state._replace(
            step=state.step + 1,
            params=params,
            average=_moved_average(self.config.ema_decay, state, params),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return meshes.constrain(state, self.shardings(state)), metrics

    def _gradient(
        self, state: TrainState, batches: Split
    ) -> tuple[Outcome, tuple[PyTree, PyTree] | None, PyTree]:
        """Loss and gradient, those of the halves if needed, and batch statistics."""
        loss_fn = self._batch_loss_fn(state)
        if "half_grads" in self.optimizer.extras:
            return half_gradients(
                self.on_batches.gradient,
                loss_fn,
                state.params,
                state.batch_stats,
                batches,
            )
        outcome, batch_stats = self.on_batches.gradient(
            loss_fn, state.params, state.batch_stats, batches
        )
        return outcome, None, batch_stats

    def _functions_of_batch(
        self, state: TrainState, batches: Split
    ) -> dict[str, Callable[..., Any]]:
        """The functions among the extra arguments, all for the same mini-batch.

        The batch is normalized by its own statistics; running ones stay unmodified.
        """
        l2_factor = state.hyperparameters["l2"]
        # The L2 term of the loss depends on the weights, which are therefore a second
        # output. Sampling labels needs only the logits.
        with_weights = "output_loss_fn" in self.optimizer.extras

        def outputs(params: PyTree) -> PyTree:
            logits = self.on_batches.outputs(
                lambda *args: self._apply(*args)[0], params, state.batch_stats, batches
            )
            return (logits, params) if with_weights else logits

        def value(params: PyTree) -> jax.Array:
            return self.on_batches.loss(
                self._batch_loss_fn(state), params, state.batch_stats, batches
            )

        def output_loss(found: tuple[jax.Array, PyTree]) -> jax.Array:
            logits, params = found
            return self._loss(l2_factor, logits, batches.labels, params)

        return {
            "value_fn": value,
            "outputs_fn": outputs,
            "output_loss_fn": output_loss,
        }

    def _batch_loss_fn(self, state: TrainState) -> LossFn:
        """The loss of a batch, with new statistics, its label loss and accuracy."""
        l2_factor = state.hyperparameters["l2"]

        def loss_fn(
            params: PyTree, batch_stats: PyTree, batch: Split
        ) -> tuple[jax.Array, tuple[PyTree, jax.Array, jax.Array]]:
            logits, batch_stats = self._apply(params, batch_stats, batch)
            accuracy = jnp.mean(hits(logits, batch.labels))
            label_loss = jnp.mean(self.losses(logits, batch.labels, 0.0))
            loss = self._loss(l2_factor, logits, batch.labels, params)
            return loss, (batch_stats, label_loss, accuracy)

        return loss_fn

    def _apply(
        self, params: PyTree, batch_stats: PyTree, batch: Split
    ) -> tuple[jax.Array, PyTree]:
        """The logits, and the batch statistics after the batch."""
        logits, updated = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.images,
            train=True,
            mutable=["batch_stats"],
        )
        return logits, updated.get("batch_stats", {})

    def _loss(
        self, l2_factor: jax.Array, logits: jax.Array, labels: jax.Array, params: PyTree
    ) -> jax.Array:
        losses = self.losses(logits, labels, self.config.label_smoothing)
        return jnp.mean(losses) + l2(l2_factor, params)

    def _prepare(
        self, state: TrainState, batches: Split, which: slice | jax.Array
    ) -> Split:
        """Augments and standardizes micro-batches, which may be some of the step's."""
        batches = meshes.constrain(batches, NamedSharding(self.mesh, meshes.BATCH))
        _, key = jax.random.split(state.key)
        keys = jax.random.split(
            jax.random.fold_in(key, state.step), self.config.micro_batches
        )
        images = jax.vmap(lambda key, x: self.standardize(self.augment(key, x)))(
            keys[which], batches.images
        )
        return batches._replace(images=images)

    def _initial_opt_state(self, params: PyTree) -> PyTree:
        # Some states hold the parameters, or one array twice, and a buffer can be
        # donated only once.
        return jax.tree.map(jnp.copy, self.optimizer.transformation.init(params))

    def _initial_average(self, params: PyTree) -> PyTree:
        return jax.tree.map(jnp.copy, params) if self.config.ema_decay else ()

    def _schedule_of(self, peak: float | jax.Array) -> optax.Schedule:
        return _schedule(self.config, self.total_steps, peak)

    def _optimizer_of(self, state: TrainState) -> optimizers.Optimizer:
        """The optimizer built from the numbers in the state, which may be traced."""
        options = {
            name: state.hyperparameters.get(name, value)
            for name, value in self.config.optimizer_options.items()
        }
        return self.build_optimizer(
            self.config.optimizer, self._schedule_of(state.learning_rate), options
        )


def make_step(
    config: RunConfig,
    num_classes: int,
    total_steps: int,
    mesh: Mesh,
    build_optimizer: Callable[..., optimizers.Optimizer] = optimizers.build,
) -> TrainStep:
    """Builds the step of a run.

    Args:
      config: settings of the run.
      num_classes: number of different labels in the data.
      total_steps: length of the schedule.
      mesh: a mesh from `experiments.training.meshes.make_mesh`.
      build_optimizer: function from a name, a schedule and options to an optimizer.

    Raises:
      ValueError: if the configuration has an unknown name.
    """
    return TrainStep(
        config=config,
        total_steps=total_steps,
        mesh=mesh,
        model=models.build(
            config.model, num_classes, config.compute_dtype, config.ghost_batch_size
        ),
        augment=preprocessing.augmentation(config.augmentation),
        standardize=preprocessing.standardization(config.standardization),
        build_optimizer=build_optimizer,
        optimizer=build_optimizer(
            config.optimizer,
            _schedule(config, total_steps, config.learning_rate),
            config.optimizer_options,
        ),
        on_batches=on_batches(config, mesh),
    )


def _schedule(
    config: RunConfig, total_steps: int, peak: float | jax.Array
) -> optax.Schedule:
    warmup = config.warmup_epochs
    fraction = None if warmup is None else warmup / config.epochs
    return schedules.build(config.schedule, peak, total_steps, fraction)


@functools.partial(jax.jit, static_argnums=0)
def _init_model(model: nn.Module, key: jax.Array, images: jax.Array) -> PyTree:
    return model.init(key, images, train=False)


def _moved_average(ema_decay: float, state: TrainState, params: PyTree) -> PyTree:
    """The average of the weights after a step to ``params``, as in arXiv 1812.02886."""
    if not ema_decay:
        return state.average
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(params, state.average, 1 - decay)
