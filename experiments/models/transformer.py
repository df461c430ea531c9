"""A small transformer that predicts the next character.

A decoder with layer normalization before each part, learned positions, and output
weights tied to the embedding of the characters (arXiv 1706.03762, 1608.05859).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

EMBEDDING_DEVIATION = 0.02


class Block(nn.Module):
    """Causal self-attention and two dense layers, each with a residual connection.

    Attributes:
      heads: number of attention heads, a divisor of the width.
      dtype: dtype of the computation.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[texts, length, width]`` to the same shape."""
        width = x.shape[-1]
        causal = nn.make_causal_mask(x[..., 0])
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x += nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, force_fp32_for_softmax=True
        )(y, mask=causal)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(y))
        return x + nn.Dense(width, dtype=self.dtype)(y)


class Transformer(nn.Module):
    """Maps character codes to logits of the character that follows each.

    Attributes:
      num_classes: number of different characters.
      width: width of the residual stream.
      depth: number of blocks.
      heads: number of heads per attention.
      dtype: dtype of the blocks; parameters and logits are float32.
    """

    num_classes: int
    width: int = 128
    depth: int = 4
    heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Returns ``[texts, length, num_classes]``; ``train`` makes no difference.

        Args:
          tokens: ``[texts, length]``, integers.
          train: ignored.
        """
        del train
        init = nn.initializers.normal(EMBEDDING_DEVIATION)
        embedding = nn.Embed(self.num_classes, self.width, embedding_init=init)
        positions = self.param("positions", init, (tokens.shape[1], self.width))
        x = (embedding(tokens) + positions).astype(self.dtype)
        for _ in range(self.depth):
            x = Block(self.heads, self.dtype)(x)
        return embedding.attend(nn.LayerNorm()(x.astype(jnp.float32)))
