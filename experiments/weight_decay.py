"""Which weights decay: all but those of normalization, as in arXiv 1812.02886."""

from typing import Any

import jax

PyTree = Any


def decay_mask(params: PyTree) -> PyTree:
    """A tree of booleans, true where weights decay.

    A normalization is recognized by its name: ``BatchNorm_0``, ``projection_norm``.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "norm" not in jax.tree_util.keystr(path).lower(), params
    )
