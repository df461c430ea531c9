"""Statistics of batch normalization for weights that were never trained with any."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.data import Split

PyTree = Any


def recomputed_statistics(
    model: nn.Module,
    params: PyTree,
    batch_stats: PyTree,
    split: Split,
    batch_size: int,
    standardize: Callable[[jax.Array], jax.Array],
) -> PyTree:
    """The means, over a split, of the statistics of its batches.

    One batch ``b`` moves running statistics ``r`` to ``m r + (1 - m) b``. From what it
    makes of zeros and of ones follow ``m`` and ``b``, for any model.

    Args:
      model: with or without batch normalization, without ghost batches.
      params: the weights.
      batch_stats: of the structure that the model has; the values do not matter.
      split: images without augmentation, as in an evaluation.
      batch_size: images that are normalized together; the last batch may be smaller,
        and counts less.
      standardize: from raw images to what the model takes.
    """
    if not batch_stats:
        return batch_stats
    examples = split.labels.shape[0]
    total = jax.tree.map(jnp.zeros_like, batch_stats)
    for at in range(0, examples, batch_size):
        images = split.images[at : at + batch_size]
        found = _statistics_of(model, standardize, params, total, images)
        share = len(images) / examples
        total = jax.tree.map(
            lambda mean, new, share=share: mean + share * new, total, found
        )
    return total


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
