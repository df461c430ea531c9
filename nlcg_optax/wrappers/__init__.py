"""Wrappers of transformations and of their extra arguments."""

from nlcg_optax.wrappers.extra_args import for_linesearch, only_extra_args
from nlcg_optax.wrappers.masked import fill_masked
from nlcg_optax.wrappers.split_by_hand import split_parameters
from nlcg_optax.wrappers.virtual_batches import (
    VirtualBatchDiagnostics,
    VirtualBatchState,
    virtual_batch,
)

__all__ = [
    "VirtualBatchDiagnostics",
    "VirtualBatchState",
    "fill_masked",
    "for_linesearch",
    "only_extra_args",
    "split_parameters",
    "virtual_batch",
]
