"""A fully connected network."""

import flax.linen as nn
import jax


class Mlp(nn.Module):
    """Dense layers with tanh between them, smooth so that curvature means something.

    Attributes:
      num_classes: width of the output.
      width: of each hidden layer.
      depth: number of hidden layers.
    """

    num_classes: int
    width: int = 64
    depth: int = 2

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits; ``train`` makes no difference here."""
        del train
        x = images.reshape(images.shape[0], -1)
        for _ in range(self.depth):
            x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.num_classes)(x)
