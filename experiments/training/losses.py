"""Cross-entropy, optionally with smoothed labels, accuracy and the L2 term."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.weight_decay import decay_mask

PyTree = Any


def cross_entropies(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """The cross-entropy of each label.

    With smoothing ``a`` the target over ``k`` classes is ``(1 - a) onehot + a / k``
    (Szegedy et al., arXiv 1512.00567, section 7).

    Args:
      logits: ``[..., classes]``.
      labels: ``[...]``, integers.
      label_smoothing: ``a``, in [0, 1).
    """
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not label_smoothing:
        return losses
    of_all_classes = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * losses + label_smoothing * of_all_classes


def hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the largest logit is that of the label."""
    return jnp.argmax(logits, axis=-1) == labels


def l2(factor: float | jax.Array, params: PyTree) -> jax.Array:
    """Returns ``factor / 2`` times the sum of squares of the parameters that decay."""
    squares = jax.tree.map(
        lambda leaf, decays: jnp.sum(jnp.square(leaf)) if decays else 0.0,
        params,
        decay_mask(params),
    )
    return 0.5 * factor * sum(jax.tree.leaves(squares), start=jnp.zeros([]))
