"""The network of a frame in its context, and the same network under the decoder."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.keyword_spotting.config import STRIDE
from experiments.keyword_spotting.decoder import (
    Transitions,
    emissions,
    window_scores,
)


class FrameNetwork(nn.Module):
    """Dense layers with tanh between them, on each frame with its context.

    Attributes:
      classes: the keyword's states, silence and background.
      context: frames before and after, of which every `STRIDE`-th is seen.
      width: units of each hidden layer.
      depth: number of hidden layers.
    """

    classes: int
    context: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of every frame that has its context.

        Args:
          features: ``[..., frames + 2 context, coefficients]``.
          train: ignored.

        Returns:
          ``[..., frames, classes]``.
        """
        del train
        frames = features.shape[-2] - 2 * self.context
        x = jnp.concatenate(
            [
                features[..., first : first + frames, :]
                for first in range(0, 2 * self.context + 1, STRIDE)
            ],
            axis=-1,
        )
        for _ in range(self.depth):
            x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.classes)(x)


class KeywordScorer(nn.Module):
    """The score of a window, as two logits with this difference.

    With these, the hinge of two classes is ``max(0, 1 - d)`` for a keyword and
    ``max(0, 1 + d)`` otherwise. Priors and transitions are in the collection
    ``batch_stats``, which training keeps.

    Attributes:
      network: the network of a frame.
      temperature: temperature of the soft maximum, zero for the maximum.
      with_priors: whether posteriors are divided by the priors.
    """

    network: FrameNetwork
    temperature: float = 0.0
    with_priors: bool = True

    @nn.compact
    def __call__(self, windows: jax.Array, *, train: bool) -> jax.Array:
        """Logits ``[-d / 2, d / 2]``, ``[windows, 2]``, of `Windows`."""
        classes = self.network.classes
        states = classes - 2

        def kept(name: str, size: int) -> Any:
            return self.variable("batch_stats", name, jnp.zeros, (size,)).value

        priors, stay, move = (
            kept("log_priors", classes),
            kept("stay", states),
            kept("move", states),
        )
        logits = self.network(windows[..., :-1], train=train)
        emitted = emissions(
            logits, priors if self.with_priors else jnp.zeros([]), states
        )
        lengths = jnp.sum(windows[..., -1], axis=-1).astype(jnp.int32)
        score = window_scores(
            emitted, Transitions(stay, move), lengths, self.temperature
        )
        # Windows with fewer frames than the keyword has states are not keywords.
        score = jnp.maximum(score, -100.0)
        return jnp.stack([-score / 2, score / 2], axis=-1)
