"""Gradients and losses in the `jax.shard_map` form: each device by itself, then a mean.

Beside the form that the compiler partitions (`experiments.training.micro_batches` under
``jit``) it differs in two things that are to be chosen: batch normalization sees the
examples of one device only, and gradients travel in a dtype of one's choice.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from experiments.training.meshes import AXES, BATCH
from experiments.training.micro_batches import (
    LossFn,
    Outcome,
    OutputsFn,
    mean_gradient,
    mean_loss,
    stacked_outputs,
    varying,
)

PyTree = Any


def mean_gradient_over_devices(
    mesh: Mesh,
    loss_fn: LossFn,
    params: PyTree,
    batch_stats: PyTree,
    batches: PyTree,
    gradient_dtype: Any = jnp.float32,
    unroll: bool = False,
) -> tuple[Outcome, PyTree]:
    """`mean_gradient` of each device's part, averaged.

    Args:
      mesh: of the devices.
      loss_fn: see `experiments.training.micro_batches`.
      params: the same on every device.
      batch_stats: likewise.
      batches: micro-batches, whose examples are split over all axes of the mesh.
      gradient_dtype: in which gradients are sent; they return in their own.
      unroll: see `mean_gradient`.

    Returns:
      The means, and the mean of the statistics after each device's last micro-batch.
    """

    def on_device(
        params: PyTree, batch_stats: PyTree, batches: PyTree
    ) -> tuple[Outcome, PyTree]:
        # Without the cast the parameters are invariant over the devices, and their
        # gradient comes summed over them: an average of it would be a sum.
        params, batch_stats = varying((params, batch_stats), AXES)
        outcome, batch_stats = mean_gradient(
            loss_fn, params, batch_stats, batches, unroll=unroll, varying_over=AXES
        )
        sent = jax.tree.map(lambda g: g.astype(gradient_dtype), outcome.grads)
        mean, batch_stats = jax.lax.pmean(
            (outcome._replace(grads=sent), batch_stats), AXES
        )
        grads = jax.tree.map(
            lambda g, own: g.astype(own.dtype), mean.grads, outcome.grads
        )
        return mean._replace(grads=grads), batch_stats

    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(P(), P(), BATCH), out_specs=(P(), P())
    )(params, batch_stats, batches)


def mean_loss_over_devices(
    mesh: Mesh, loss_fn: LossFn, params: PyTree, batch_stats: PyTree, batches: PyTree
) -> jax.Array:
    """`mean_loss` of each device's part, averaged; it can be differentiated."""

    def on_device(params: PyTree, batch_stats: PyTree, batches: PyTree) -> jax.Array:
        params, batch_stats = varying((params, batch_stats), AXES)
        return jax.lax.pmean(mean_loss(loss_fn, params, batch_stats, batches), AXES)

    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(P(), P(), BATCH), out_specs=P()
    )(params, batch_stats, batches)


def stacked_outputs_over_devices(
    mesh: Mesh,
    outputs_fn: OutputsFn,
    params: PyTree,
    batch_stats: PyTree,
    batches: PyTree,
) -> jax.Array:
    """`stacked_outputs` of each device's part, where the examples are."""

    def on_device(params: PyTree, batch_stats: PyTree, batches: PyTree) -> jax.Array:
        params, batch_stats = varying((params, batch_stats), AXES)
        return stacked_outputs(outputs_fn, params, batch_stats, batches)

    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(P(), P(), BATCH), out_specs=BATCH
    )(params, batch_stats, batches)
