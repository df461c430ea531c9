"""Batch normalization, optionally with the statistics of parts of the batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.BatchNorm):
    """Flax's batch normalization, or "ghost" batch normalization (arXiv 1705.08741).

    Each ghost batch is normalized by its own mean and variance, as if it were a
    micro-batch; the running statistics are updated by one ghost batch after another.

    Attributes:
      ghost_batch_size: examples that are normalized together, a divisor of the batch
        size; None for all of them.
    """

    ghost_batch_size: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes over all axes but the last."""
        if self.use_running_average or self.ghost_batch_size is None:
            return super().__call__(x)
        features = x.shape[-1]
        old_mean = self.variable(
            "batch_stats", "mean", lambda: jnp.zeros(features, jnp.float32)
        )
        old_var = self.variable(
            "batch_stats", "var", lambda: jnp.ones(features, jnp.float32)
        )
        ghosts = x.reshape(-1, self.ghost_batch_size, *x.shape[1:])
        axes = tuple(range(1, ghosts.ndim - 1))
        exact = ghosts.astype(jnp.float32)
        mean = jnp.mean(exact, axes)
        var = jnp.maximum(jnp.mean(jnp.square(exact), axes) - jnp.square(mean), 0.0)
        count = len(ghosts)
        # Weight of each ghost batch after the later ones have updated the mean.
        share = (1 - self.momentum) * self.momentum ** jnp.arange(count - 1, -1, -1)
        old_mean.value = self.momentum**count * old_mean.value + share @ mean
        old_var.value = self.momentum**count * old_var.value + share @ var
        scale = self.param("scale", self.scale_init, (features,), self.param_dtype)
        bias = self.param("bias", self.bias_init, (features,), self.param_dtype)
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        mean, factor = (jnp.expand_dims(v, axes) for v in (mean, factor))
        normalized = (exact - mean) * factor + bias
        return normalized.astype(self.dtype or x.dtype).reshape(x.shape)
