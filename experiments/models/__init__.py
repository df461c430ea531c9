"""Flax models by name.

Every model is called as ``model.apply(variables, images, train=...)``, with character
codes in place of images if it is a model of text, and returns logits. The training loop
keeps track of the collection ``batch_stats``.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from experiments.models.autoencoder import Autoencoder
from experiments.models.cnn import Cnn
from experiments.models.mlp import Mlp
from experiments.models.patches import PatchNetwork
from experiments.models.resnet50 import ResNet50
from experiments.models.resnet_cifar import DEPTHS, ResNetCifar
from experiments.models.transformer import Transformer
from experiments.registry import look_up

# Width of the models for CPUs, and the momentum of their statistics: with the paper's
# .99 the initial statistics would still dominate after the few steps of such a run.
NARROW, NARROW_MOMENTUM = 0.5, 0.9

# Called with the number of classes and the dtype of the computation.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "autoencoder": Autoencoder,
    "cnn": Cnn,
    "cnn_strided": functools.partial(
        Cnn, features=(12, 24, 48), strides=(2, 2, 1)
    ),  # for images of 16x16 on CPUs
    "mlp": Mlp,
    "patches": PatchNetwork,
    "transformer": Transformer,
    "transformer_small": functools.partial(Transformer, width=64, depth=2),
    "resnet50": ResNet50,
    "resnet50_narrow": functools.partial(ResNet50, width=NARROW),
    **{
        f"resnet{depth}": functools.partial(ResNetCifar, depth=depth)
        for depth in DEPTHS
    },
    "resnet32_half": functools.partial(ResNetCifar, depth=32, width=0.5),
    **{
        f"resnet{depth}_narrow": functools.partial(
            ResNetCifar,
            depth=depth,
            width=NARROW,
            norm_momentum=NARROW_MOMENTUM,
        )
        for depth in DEPTHS
    },
}
OF_TEXT = frozenset({"transformer", "transformer_small"})
DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(
    name: str,
    num_classes: int,
    compute_dtype: str = "float32",
    ghost_batch_size: int | None = None,
) -> nn.Module:
    """Builds a model.

    Args:
      name: a name in `MODELS`.
      num_classes: width of the output.
      compute_dtype: a name in `DTYPES`; parameters and logits stay float32.
      ghost_batch_size: examples that batch normalization normalizes together; None for
        all of them.

    Raises:
      ValueError: if a name is unknown, or ``ghost_batch_size`` is given for a model
        without batch normalization.
    """
    model = look_up("model", name, MODELS)
    dtype = look_up("compute_dtype", compute_dtype, DTYPES)
    built = model(num_classes=num_classes, dtype=dtype)
    if ghost_batch_size is None:
        return built
    if not hasattr(built, "ghost_batch_size"):
        raise ValueError(
            f"ghost_batch_size={ghost_batch_size!r} must be None with model={name!r}, "
            "which has no batch normalization"
        )
    return built.clone(ghost_batch_size=ghost_batch_size)
