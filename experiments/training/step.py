"""One step as a pure function of the state and a batch, on a mesh of devices."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
from experiments.training.micro_batches import (
    Outcome,
    half_gradients,
    mean_gradient,
    mean_loss,
    stacked_outputs,
)
from experiments.training.per_device import (
    mean_gradient_over_devices,
    mean_loss_over_devices,
    stacked_outputs_over_devices,
)

PyTree = Any
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that changes during a run, and what tells runs of a grid apart.

    Attributes:
      step: steps taken.
      params: the weights.
      average: exponential average of the weights for evaluation; empty without.
      batch_stats: statistics of batch normalization; empty if the model has none.
      opt_state: state of the optimizer.
      learning_rate: peak of the schedule.
      hyperparameters: what `hyperparameters_of` gives for the run.
      key: of the order of the data and the augmentation.
    """

    step: jax.Array
    params: PyTree
    average: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    learning_rate: jax.Array
    hyperparameters: dict[str, jax.Array]
    key: jax.Array


class TrainStep(NamedTuple):
    """A step and what belongs to it.

    Attributes:
      init: from a seed, a peak learning rate, further hyperparameters and an image or
        more to the state before the first step, not yet placed on the mesh.
      update: from a state and micro-batches, stacked along the first axis, to the
        next state and the metrics of the step.
      restart: from a state, weights and statistics of batch normalization to a state
        before the first step that begins there.
      shardings: from a state, or its shapes, to where each of its leaves lives.
      model: the network.
      standardize: what it wants done to images.
      gradient_equivalents: mean cost of a step.
    """

    init: Callable[[int, float, Mapping[str, float], jax.Array], TrainState]
    update: Callable[[TrainState, Split], tuple[TrainState, Metrics]]
    restart: Callable[[TrainState, PyTree, PyTree], TrainState]
    shardings: Callable[[TrainState], TrainState]
    model: nn.Module
    standardize: Callable[[jax.Array], jax.Array]
    gradient_equivalents: float


def make_step(
    config: RunConfig,
    num_classes: int,
    total_steps: int,
    mesh: Mesh,
    build_optimizer: Callable[..., optimizers.Optimizer] = optimizers.build,
) -> TrainStep:
    """Builds the step of a run.

    Args:
      config: of the run.
      num_classes: of the data.
      total_steps: length of the schedule.
      mesh: of `experiments.training.meshes.make_mesh`.
      build_optimizer: from a name, a schedule and options to an optimizer.

    Raises:
      ValueError: if the configuration has an unknown name.
    """
    model = models.build(
        config.model, num_classes, config.compute_dtype, config.ghost_batch_size
    )
    augment = preprocessing.augmentation(config.augmentation)
    standardize = preprocessing.standardization(config.standardization)
    gradient, loss, outputs = _on_batches(config, mesh)
    copied: Any = meshes.replicated(mesh)

    def schedule_of(peak: float | jax.Array) -> optax.Schedule:
        warmup = config.warmup_epochs
        fraction = None if warmup is None else warmup / config.epochs
        return schedules.build(config.schedule, peak, total_steps, fraction)

    def optimizer_of(state: TrainState) -> optimizers.Optimizer:
        options = {
            name: state.hyperparameters.get(name, value)
            for name, value in config.optimizer_options.items()
        }
        return build_optimizer(
            config.optimizer, schedule_of(state.learning_rate), options
        )

    # Of plain numbers, which are checked.
    optimizer = build_optimizer(
        config.optimizer, schedule_of(config.learning_rate), config.optimizer_options
    )

    def init(
        seed: int,
        learning_rate: float,
        hyperparameters: Mapping[str, float],
        images: jax.Array,
    ) -> TrainState:
        init_key, data_key = jax.random.split(jax.random.key(seed))
        variables = _init_model(model, init_key, standardize(images))
        params = variables["params"]
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            params=params,
            average=jax.tree.map(jnp.copy, params) if config.ema_decay else (),
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.transformation.init(params),
            learning_rate=jnp.asarray(learning_rate, jnp.float32),
            hyperparameters={
                name: jnp.asarray(value, jnp.float32)
                for name, value in hyperparameters.items()
            },
            key=data_key,
        )

    def restart(state: TrainState, params: PyTree, batch_stats: PyTree) -> TrainState:
        return state._replace(
            step=jnp.zeros([], jnp.int32),
            params=params,
            average=jax.tree.map(jnp.copy, params) if config.ema_decay else (),
            batch_stats=batch_stats,
            opt_state=optimizer.transformation.init(params),
        )

    def shardings(state: TrainState) -> TrainState:
        return TrainState(
            step=copied,
            params=meshes.shardings_of(mesh, state.params),
            average=meshes.shardings_of(mesh, state.average),
            batch_stats=jax.tree.map(lambda _: copied, state.batch_stats),
            opt_state=meshes.shardings_of(mesh, state.opt_state),
            learning_rate=copied,
            hyperparameters=jax.tree.map(lambda _: copied, state.hyperparameters),
            key=copied,
        )

    def apply(
        params: PyTree, batch_stats: PyTree, batch: Split
    ) -> tuple[jax.Array, PyTree]:
        """The logits, and the statistics after the batch."""
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.images,
            train=True,
            mutable=["batch_stats"],
        )
        return logits, updated.get("batch_stats", {})

    def loss_of(
        l2_factor: jax.Array, logits: jax.Array, labels: jax.Array, params: PyTree
    ) -> jax.Array:
        losses = cross_entropies(logits, labels, config.label_smoothing)
        return jnp.mean(losses) + l2(l2_factor, params)

    def loss_fn(
        l2_factor: jax.Array, params: PyTree, batch_stats: PyTree, batch: Split
    ) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:
        logits, batch_stats = apply(params, batch_stats, batch)
        accuracy = jnp.mean(hits(logits, batch.labels))
        return loss_of(l2_factor, logits, batch.labels, params), (batch_stats, accuracy)

    def outputs_fn(params: PyTree, batch_stats: PyTree, batch: Split) -> jax.Array:
        return apply(params, batch_stats, batch)[0]

    def update(state: TrainState, batches: Split) -> tuple[TrainState, Metrics]:
        batches = meshes.constrain(batches, NamedSharding(mesh, meshes.BATCH))
        batches = batches._replace(images=prepare_images(state, batches.images))
        l2_factor = state.hyperparameters["l2"]
        batch_loss_fn = functools.partial(loss_fn, l2_factor)
        half_grads = None
        if "half_grads" in optimizer.extras:
            outcome, half_grads, batch_stats = half_gradients(
                gradient, batch_loss_fn, state.params, state.batch_stats, batches
            )
        else:
            outcome, batch_stats = gradient(
                batch_loss_fn, state.params, state.batch_stats, batches
            )
        # Sums over devices then end where the state lives.
        grads = meshes.constrain(
            outcome.grads, meshes.shardings_of(mesh, outcome.grads)
        )

        def logits(params: PyTree) -> jax.Array:
            return outputs(outputs_fn, params, state.batch_stats, batches)

        def logits_and_weights(params: PyTree) -> tuple[jax.Array, PyTree]:
            return logits(params), params

        # The L2 term of the loss is a function of the weights, which are an output for
        # it. What samples labels from the logits wants nothing beside them.
        with_weights = "output_loss_fn" in optimizer.extras
        extras = {
            "value": outcome.loss,
            "grad": grads,
            # Of this batch, normalized by its own statistics, which stay as they were.
            "value_fn": lambda params: loss(
                batch_loss_fn, params, state.batch_stats, batches
            ),
            "outputs_fn": logits_and_weights if with_weights else logits,
            "output_loss_fn": lambda found: loss_of(
                l2_factor, found[0], batches.labels, found[1]
            ),
            "half_grads": half_grads,
        }
        updates, opt_state = optax.with_extra_args_support(
            optimizer_of(state).transformation
        ).update(
            grads,
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
        return meshes.constrain(state, shardings(state)), metrics

    def prepare_images(state: TrainState, images: jax.Array) -> jax.Array:
        _, key = jax.random.split(state.key)
        keys = jax.random.split(jax.random.fold_in(key, state.step), len(images))
        return jax.vmap(lambda key, x: standardize(augment(key, x)))(keys, images)

    return TrainStep(
        init,
        update,
        restart,
        shardings,
        model,
        standardize,
        optimizer.gradient_equivalents,
    )


def _on_batches(
    config: RunConfig, mesh: Mesh
) -> tuple[
    Callable[..., tuple[Outcome, PyTree]],
    Callable[..., jax.Array],
    Callable[..., jax.Array],
]:
    """How gradient, loss and outputs of a batch are computed."""
    unroll = mesh.devices.flat[0].platform == "cpu"
    if config.partitioning == "shard_map":
        dtype = models.DTYPES[config.gradient_dtype]
        return (
            functools.partial(
                mean_gradient_over_devices, mesh, gradient_dtype=dtype, unroll=unroll
            ),
            functools.partial(mean_loss_over_devices, mesh),
            functools.partial(stacked_outputs_over_devices, mesh),
        )

    def on_copies(function: Callable[..., Any]) -> Callable[..., Any]:
        # Split weights are gathered where they are used. Left to itself the compiler
        # would carry their sharding over to activations.
        def function_on_copies(params: PyTree, *rest: PyTree) -> Any:
            copies = meshes.constrain(params, meshes.replicated(mesh))
            return function(copies, *rest)

        return function_on_copies

    return (
        lambda loss_fn, *rest: mean_gradient(on_copies(loss_fn), *rest, unroll=unroll),
        lambda loss_fn, *rest: mean_loss(on_copies(loss_fn), *rest),
        lambda outputs_fn, *rest: stacked_outputs(on_copies(outputs_fn), *rest),
    )


@functools.partial(jax.jit, static_argnums=0)
def _init_model(model: nn.Module, key: jax.Array, images: jax.Array) -> PyTree:
    return model.init(key, images, train=False)


def _moved_average(ema_decay: float, state: TrainState, params: PyTree) -> PyTree:
    """The average of the weights after a step to ``params``, as in arXiv 1812.02886."""
    if not ema_decay:
        return state.average
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(params, state.average, 1 - decay)
