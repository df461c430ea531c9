"""Batch statistics for weights that have none, such as an average of weights."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.data import Split

PyTree = Any


def recomputed_statistics(
    model: nn.Module,
    params: PyTree,
    batch_stats: PyTree,
    batches: Iterable[Split],
    standardize: Callable[[jax.Array], jax.Array],
) -> PyTree:
    """The mean over batches of their statistics.

    One batch with statistics ``b`` moves running statistics ``r`` to
    ``m r + (1 - m) b``. The results for ``r`` of zeros and of ones determine ``m`` and
    ``b``, for any model.

    Args:
      model: a network with or without batch normalization, but without ghost batches.
      params: the weights.
      batch_stats: statistics with the structure of the model's; values are ignored.
      batches: images that are normalized together, without augmentation, as in an
        evaluation; a smaller batch has a smaller weight.
      standardize: function from raw images to the input of the model.
    """
    if not batch_stats:
        return batch_stats
    mean, examples = jax.tree.map(jnp.zeros_like, batch_stats), 0
    for batch in batches:
        found = _statistics_of(model, standardize, params, mean, batch.images)
        examples += len(batch.labels)
        mean = optax.incremental_update(found, mean, len(batch.labels) / examples)
    return mean


@functools.partial(jax.jit, static_argnums=(0, 1))
def _statistics_of(
    model: nn.Module,
    standardize: Callable[[jax.Array], jax.Array],
    params: PyTree,
    batch_stats: PyTree,
    images: jax.Array,
) -> PyTree:
    images = standardize(images)

    def moved(value: float) -> PyTree:
        start = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), batch_stats)
        _, updated = model.apply(
            {"params": params, "batch_stats": start},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return updated["batch_stats"]

    return jax.tree.map(
        lambda of_zeros, of_ones: of_zeros / (1 - (of_ones - of_zeros)),
        moved(0.0),
        moved(1.0),
    )
