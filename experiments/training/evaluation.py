"""Loss and accuracy of a model on a whole split."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.data import Split, Stream
from experiments.training.feeding import evaluation_batches
from experiments.training.losses import cross_entropies, hits
from experiments.training.meshes import make_mesh

PyTree = Any

Standardize = Callable[[jax.Array], jax.Array]

EVALUATION_BATCH_SIZE = 1000


class Evaluation(NamedTuple):
    """Loss, without the L2 term, and accuracy on a split."""

    loss: jax.Array
    accuracy: jax.Array


def evaluate_split(
    model: nn.Module,
    variables: PyTree,
    split: Split | Stream,
    standardize: Standardize,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Evaluates a split in batches; the means are over all labels.

    Args:
      model: the network.
      variables: its weights and statistics.
      split: the split, on the device or streamed; negative labels are ignored.
      standardize: function from raw images to the input of the model.
      mesh: mesh of the devices that share a streamed batch; all devices by default.
    """
    # No loop inside the compiled call: on CPUs, convolutions in XLA loops are slow.
    sums = [
        _evaluate_batch(model, standardize, variables, batch)
        for batch in batches_of(split, EVALUATION_BATCH_SIZE, mesh)
    ]
    total = jax.tree.map(lambda *parts: sum(parts), *sums)
    return Evaluation(total.loss / total.labels, total.hits / total.labels)


class _Sums(NamedTuple):
    loss: jax.Array
    hits: jax.Array
    labels: jax.Array


def batches_of(
    split: Split | Stream, batch_size: int, mesh: Mesh | None = None
) -> Iterator[Split]:
    """All examples once; the last batch may be smaller, or is padded in a stream."""
    if not isinstance(split, Split):
        yield from evaluation_batches(split, batch_size, mesh or make_mesh())
        return
    for at in range(0, split.labels.shape[0], batch_size):
        yield Split(*(x[at : at + batch_size] for x in split))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate_batch(
    model: nn.Module, standardize: Standardize, variables: PyTree, batch: Split
) -> _Sums:
    logits = model.apply(variables, standardize(batch.images), train=False)
    counts = batch.labels >= 0
    losses = cross_entropies(logits, jnp.maximum(batch.labels, 0))
    return _Sums(
        jnp.sum(losses, where=counts),
        jnp.sum(hits(logits, batch.labels), where=counts),
        jnp.sum(counts),
    )
