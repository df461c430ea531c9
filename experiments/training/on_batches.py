"""Loss, gradient and outputs of a batch on a mesh: under ``jit`` or ``shard_map``."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from experiments import models
from experiments.config import RunConfig
from experiments.training import meshes
from experiments.training.micro_batches import (
    Outcome,
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


class OnBatches(NamedTuple):
    """Functions that compute quantities of a batch from its micro-batches.

    Attributes:
      gradient: gradient of a loss, with loss, accuracy and batch statistics.
      loss: mean loss.
      outputs: outputs of the model, stacked.
    """

    gradient: Callable[..., tuple[Outcome, PyTree]]
    loss: Callable[..., jax.Array]
    outputs: Callable[..., jax.Array]


def on_batches(config: RunConfig, mesh: Mesh) -> OnBatches:
    """The functions for a configuration's partitioning, on a mesh."""
    unroll = mesh.devices.flat[0].platform == "cpu"
    if config.partitioning == "shard_map":
        dtype = models.DTYPES[config.gradient_dtype]
        return OnBatches(
            functools.partial(
                mean_gradient_over_devices, mesh, gradient_dtype=dtype, unroll=unroll
            ),
            functools.partial(mean_loss_over_devices, mesh),
            functools.partial(stacked_outputs_over_devices, mesh),
        )

    def on_copies(function: Callable[..., Any]) -> Callable[..., Any]:
        # Gathers split weights where they are used. Otherwise the compiler would
        # propagate their sharding to activations.
        def function_on_copies(params: PyTree, *rest: PyTree) -> Any:
            copies = meshes.constrain(params, meshes.replicated(mesh))
            return function(copies, *rest)

        return function_on_copies

    return OnBatches(
        lambda loss_fn, *rest: mean_gradient(on_copies(loss_fn), *rest, unroll=unroll),
        lambda loss_fn, *rest: mean_loss(on_copies(loss_fn), *rest),
        lambda outputs_fn, *rest: stacked_outputs(on_copies(outputs_fn), *rest),
    )
