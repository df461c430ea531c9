"""The residual networks of arXiv 1812.02886 for images of 32x32 pixels.

Pre-activation ("v2", arXiv 1603.05027): three stages with 16, 32 and 64 filters, of
(depth - 2) / 6 blocks each, which have two 3x3 convolutions.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.batch_norm import BatchNorm

STAGE_FILTERS = (16, 32, 64)
DEPTHS = (8, 20, 32, 56)

Normalization = functools.partial(BatchNorm, epsilon=1e-5)
Conv = functools.partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
)


class PreActivationBlock(nn.Module):
    """Batch normalization, ReLU and a 3x3 convolution, twice, around a shortcut.

    Attributes:
      filters: filters of both convolutions.
      strides: stride of the first convolution and of the projection.
      project: whether the shortcut is a 1x1 convolution, after the first ReLU.
      norm_momentum: momentum of the statistics of batch normalization.
      dtype: dtype of the computation.
      ghost_batch_size: see `BatchNorm`.
    """

    filters: int
    strides: int
    project: bool
    norm_momentum: float = 0.99
    dtype: Any = jnp.float32
    ghost_batch_size: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns the output of the block."""
        normalize = functools.partial(
            Normalization,
            momentum=self.norm_momentum,
            use_running_average=not train,
            dtype=self.dtype,
            ghost_batch_size=self.ghost_batch_size,
        )
        shortcut = x
        x = nn.relu(normalize()(x))
        if self.project:
            shortcut = Conv(
                self.filters, (1, 1), strides=self.strides, dtype=self.dtype
            )(x)
        x = Conv(
            self.filters,
            (3, 3),
            strides=self.strides,
            padding=1,
            dtype=self.dtype,
        )(x)
        x = nn.relu(normalize()(x))
        x = Conv(self.filters, (3, 3), padding=1, dtype=self.dtype)(x)
        return shortcut + x


class ResNetCifar(nn.Module):
    """ResNet v2 for small images; 472,820 parameters at depth 32 and 100 classes.

    Attributes:
      num_classes: width of the output.
      depth: number of convolutions in series plus the dense layer, 6n + 2.
      width: multiplier of the numbers of filters.
      norm_momentum: momentum of the statistics of batch normalization.
      dtype: dtype of the computation; parameters and logits are float32.
      ghost_batch_size: see `BatchNorm`.
    """

    num_classes: int
    depth: int = 32
    width: float = 1.0
    norm_momentum: float = 0.99
    dtype: Any = jnp.float32
    ghost_batch_size: int | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits; with ``train`` the batch is normalized by its statistics."""
        filters = [max(1, round(self.width * count)) for count in STAGE_FILTERS]
        x = Conv(filters[0], (3, 3), padding=1, dtype=self.dtype)(images)
        for stage, stage_filters in enumerate(filters):
            for block in range((self.depth - 2) // 6):
                first = block == 0
                x = PreActivationBlock(
                    stage_filters,
                    strides=2 if first and stage > 0 else 1,
                    project=first,
                    norm_momentum=self.norm_momentum,
                    dtype=self.dtype,
                    ghost_batch_size=self.ghost_batch_size,
                )(x, train=train)
        x = Normalization(
            momentum=self.norm_momentum,
            use_running_average=not train,
            dtype=self.dtype,
            ghost_batch_size=self.ghost_batch_size,
        )(x)
        x = jnp.mean(nn.relu(x), axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes)(x)
