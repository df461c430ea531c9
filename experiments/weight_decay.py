"""Which weights decay: all but those of batch normalisation, as in arXiv 1812.02886."""

from typing import Any

import jax

PyTree = Any


def decay_mask(params: PyTree) -> PyTree:
    """A tree of booleans, true where weights decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "BatchNorm" not in jax.tree_util.keystr(path), params
    )
