"""A dense autoencoder of images whose pixels are classes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Autoencoder(nn.Module):
    """Dense layers with tanh between them and a narrow one in the middle.

    Attributes:
      num_classes: number of values that a pixel can have.
      widths: of the encoder's layers; the decoder's are the same in reverse.
      dtype: dtype of the hidden layers; parameters and logits are float32.
    """

    num_classes: int
    widths: tuple[int, ...] = (128, 64, 12)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns ``[images, pixels, num_classes]``; ``train`` makes no difference."""
        del train
        x = images.reshape(images.shape[0], -1)
        pixels = x.shape[1]
        for place, width in enumerate((*self.widths, *self.widths[-2::-1])):
            x = nn.Dense(width, dtype=self.dtype)(x)
            if place != len(self.widths) - 1:  # the code itself is not bounded
                x = nn.tanh(x)
        logits = nn.Dense(pixels * self.num_classes)(x.astype(jnp.float32))
        return logits.reshape(-1, pixels, self.num_classes)
