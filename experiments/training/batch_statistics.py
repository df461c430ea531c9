"""Batch statistics for weights that have none, such as an average of weights."""

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
    """The mean, over a split, of the statistics of its batches.

    One batch with statistics ``b`` moves running statistics ``r`` to
    ``m r + (1 - m) b``. The results for ``r`` of zeros and of ones determine ``m`` and
    ``b``, for any model.

    Args:
      model: a network with or without batch normalization, but without ghost batches.
      params: the weights.
      batch_stats: statistics with the structure of the model's; values are ignored.
      split: images without augmentation, as in an evaluation.
      batch_size: images that are normalized together; the last batch may be smaller,
        and has a smaller weight.
      standardize: function from raw images to the input of the model.
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
