"""A small convolutional network with batch normalization."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.batch_norm import BatchNorm


class Cnn(nn.Module):
    """Convolutions with batch normalization, then a mean over all positions.

    Attributes:
      num_classes: width of the output.
      features: output channels per convolution.
      strides: stride per convolution; by default 1 for the first and 2 for the others.
      dtype: dtype of the computation; parameters and logits are float32.
      ghost_batch_size: see `BatchNorm`.
    """

    num_classes: int
    features: tuple[int, ...] = (16, 32)
    strides: tuple[int, ...] | None = None
    dtype: Any = jnp.float32
    ghost_batch_size: int | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits; with ``train`` the batch is normalized by its statistics."""
        x = images
        strides = self.strides or (1, *[2] * (len(self.features) - 1))
        for features, stride in zip(self.features, strides, strict=True):
            x = nn.Conv(
                features, (3, 3), strides=stride, use_bias=False, dtype=self.dtype
            )(x)
            x = BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                dtype=self.dtype,
                ghost_batch_size=self.ghost_batch_size,
            )(x)
            x = nn.relu(x)
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))
