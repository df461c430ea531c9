"""ResNet-50 v1.5 for ImageNet, the network of the large-batch records.

Residual bottlenecks (arXiv 1512.03385) with the stride in the 3x3 convolution, which
is what "v1.5" means. As in arXiv 1706.02677, section 5.1, the last scale of a block
starts at zero; the initial weights and the momentum of batch normalization are from
there, too.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.batch_norm import BatchNorm

STAGE_BLOCKS = (3, 4, 6, 3)
EXPANSION = 4  # output channels of a block, relative to those inside it

Normalization = functools.partial(BatchNorm, momentum=0.9, epsilon=1e-5)
Conv = functools.partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
)


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1, each normalized, around a shortcut.

    Attributes:
      filters: filters of the first two convolutions; the third has four times as many.
      strides: stride of the 3x3 convolution and of the projection.
      dtype: dtype of the computation.
      ghost_batch_size: see `BatchNorm`.
    """

    filters: int
    strides: int = 1
    dtype: Any = jnp.float32
    ghost_batch_size: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns the output of the block."""
        conv = functools.partial(Conv, dtype=self.dtype)
        normalize = functools.partial(
            Normalization,
            use_running_average=not train,
            dtype=self.dtype,
            ghost_batch_size=self.ghost_batch_size,
        )
        channels = EXPANSION * self.filters
        shortcut = x
        x = nn.relu(normalize()(conv(self.filters, (1, 1))(x)))
        x = conv(self.filters, (3, 3), strides=self.strides, padding=1)(x)
        x = nn.relu(normalize()(x))
        x = conv(channels, (1, 1))(x)
        x = normalize(scale_init=nn.initializers.zeros)(x)
        if shortcut.shape != x.shape:
            shortcut = conv(channels, (1, 1), strides=self.strides, name="projection")(
                shortcut
            )
            shortcut = normalize(name="projection_norm")(shortcut)
        return nn.relu(shortcut + x)


class ResNet50(nn.Module):
    """ResNet-50 v1.5; 25,557,032 parameters at 1000 classes.

    Attributes:
      num_classes: width of the output.
      width: multiplier of the numbers of filters.
      stage_blocks: number of blocks per stage.
      dtype: dtype of the computation; parameters, statistics and logits are float32.
      ghost_batch_size: see `BatchNorm`.
    """

    num_classes: int
    width: float = 1.0
    stage_blocks: tuple[int, ...] = STAGE_BLOCKS
    dtype: Any = jnp.float32
    ghost_batch_size: int | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits; with ``train`` the batch is normalized by its statistics."""
        stem = max(1, round(64 * self.width))
        x = Conv(stem, (7, 7), strides=2, padding=3, dtype=self.dtype)(images)
        x = Normalization(
            use_running_average=not train,
            dtype=self.dtype,
            ghost_batch_size=self.ghost_batch_size,
        )(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stage_blocks):
            for block in range(blocks):
                strides = 2 if block == 0 and stage > 0 else 1
                x = Bottleneck(
                    stem * 2**stage, strides, self.dtype, self.ghost_batch_size
                )(x, train=train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01))(x)
