"""Flax models by name.

Every model is called as ``model.apply(variables, images, train=...)`` and returns
logits; what it keeps in the collection ``batch_stats`` the training loop carries along.
"""

from collections.abc import Callable

import flax.linen as nn

from experiments.models.cnn import Cnn
from experiments.models.mlp import Mlp
from experiments.registry import look_up

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "cnn": lambda num_classes: Cnn(num_classes),
    "mlp": lambda num_classes: Mlp(num_classes),
}


def build(name: str, num_classes: int) -> nn.Module:
    """Builds a model.

    Raises:
      ValueError: if the name is unknown.
    """
    return look_up("model", name, MODELS)(num_classes)
