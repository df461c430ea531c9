"""A fully connected network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Mlp(nn.Module):
    """Dense layers with tanh between them, which is smooth, so that curvature exists.

    Attributes:
      num_classes: width of the output.
      width: width of each hidden layer.
      depth: number of hidden layers.
      dtype: dtype of the hidden layers; parameters and logits are float32.
    """

    num_classes: int
    width: int = 64
    depth: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits; ``train`` makes no difference here."""
        del train
        x = images.reshape(images.shape[0], -1)
        for _ in range(self.depth):
            x = nn.tanh(nn.Dense(self.width, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes)(x.astype(jnp.float32))
