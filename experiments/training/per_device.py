"""Gradients and losses under `jax.shard_map`: computed per device, then averaged.

This form differs from the one that the compiler partitions
(`experiments.training.micro_batches` under ``jit``) in two ways: batch normalization
uses the examples of one device only, and gradients are sent in a dtype of choice.
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
    """`mean_gradient` of each device's part, averaged over devices.

    Args:
      mesh: mesh of the devices.
      loss_fn: see `experiments.training.micro_batches`.
      params: the weights, replicated.
      batch_stats: batch statistics, replicated.
      batches: micro-batches, whose examples are split over all axes of the mesh.
      gradient_dtype: dtype in which gradients are sent; the result has their own dtype.
      unroll: see `mean_gradient`.

    Returns:
      The means, and the mean of the statistics after each device's last micro-batch.
    """

    def on_device(
        params: PyTree, batch_stats: PyTree, batches: PyTree
    ) -> tuple[Outcome, PyTree]:
        # Without the cast the parameters would be invariant over devices, and their
        # gradient already summed over them: its average would be that sum.
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
    """`mean_loss` of each device's part, averaged over devices; differentiable."""

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
    """`stacked_outputs` of each device's part, split like the examples."""

    def on_device(params: PyTree, batch_stats: PyTree, batches: PyTree) -> jax.Array:
        params, batch_stats = varying((params, batch_stats), AXES)
        return stacked_outputs(outputs_fn, params, batch_stats, batches)

    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(P(), P(), BATCH), out_specs=BATCH
    )(params, batch_stats, batches)
