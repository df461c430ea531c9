"""A network on patches of an image, in which every weight is a matrix."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.batch_norm import BatchNorm


class PatchNetwork(nn.Module):
    """The same dense layers on every patch, then a mean over all patches.

    Each hidden layer is followed by batch normalization and ReLU. It is a network of
    convolutions whose first kernel is as large as its stride and whose others are 1x1.

    Attributes:
      num_classes: width of the output.
      patch: side of a patch, a divisor of the sides of the image.
      width: width of each hidden layer.
      depth: number of hidden layers.
      dtype: dtype of the hidden layers; parameters and logits are float32.
      ghost_batch_size: see `BatchNorm`.
    """

    num_classes: int
    patch: int = 4
    width: int = 64
    depth: int = 3
    dtype: Any = jnp.float32
    ghost_batch_size: int | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits; with ``train`` the batch is normalized by its statistics."""
        count, height, width, channels = images.shape
        side = self.patch
        grid = images.reshape(
            count, height // side, side, width // side, side, channels
        )
        x = grid.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, side * side * channels)
        for _ in range(self.depth):
            x = nn.Dense(self.width, use_bias=False, dtype=self.dtype)(x)
            x = BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                dtype=self.dtype,
                ghost_batch_size=self.ghost_batch_size,
            )(x)
            x = nn.relu(x)
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=1, dtype=jnp.float32))
