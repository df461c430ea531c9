"""Loss and accuracy of a model on a whole split."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments import preprocessing
from experiments.data import Split
from experiments.training.losses import cross_entropies, hits

PyTree = Any

EVALUATION_BATCH_SIZE = 1000


class Evaluation(NamedTuple):
    """Loss, without the L2 term, and accuracy on a split."""

    loss: jax.Array
    accuracy: jax.Array


def evaluate_split(model: nn.Module, variables: PyTree, split: Split) -> Evaluation:
    """Goes through a split in batches; the means are over all labels."""
    # No loop within the compiled call: on CPUs XLA is slow at convolutions in loops.
    parts = [
        _evaluate_batch(
            model,
            variables,
            jax.tree.map(lambda x, at=at: x[at : at + EVALUATION_BATCH_SIZE], split),
        )
        for at in range(0, split.labels.shape[0], EVALUATION_BATCH_SIZE)
    ]
    return jax.tree.map(lambda *sums: sum(sums) / split.labels.size, *parts)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_batch(model: nn.Module, variables: PyTree, batch: Split) -> Evaluation:
    """Sums, not means."""
    images = preprocessing.standardise(batch.images)
    logits = model.apply(variables, images, train=False)
    return Evaluation(
        jnp.sum(cross_entropies(logits, batch.labels)),
        jnp.sum(hits(logits, batch.labels)),
    )
