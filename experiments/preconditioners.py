"""Preconditioners that are put together from Optax's parts."""

from typing import Any

import jax
import optax

PyTree = Any


def matrix_axes(leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    """How a weight is a matrix: inputs by outputs; None for vectors and scalars.

    The kernel of a convolution is one matrix, with a row for each place and channel.
    """
    if leaf.ndim < 2:
        return None
    return optax.contrib.MuonDimensionNumbers(
        tuple(range(leaf.ndim - 1)), leaf.ndim - 1
    )


def matrix_axes_of(params: PyTree) -> PyTree:
    """`matrix_axes` of every leaf."""
    return jax.tree.map(matrix_axes, params)


def orthogonalised_matrices(decay: float) -> optax.GradientTransformation:
    """Orthogonalises matrices as Muon does, without its momentum; RMS for the rest.

    Args:
      decay: of the mean square by which vectors and scalars are divided.
    """
    return optax.partition(
        {
            "matrix": optax.contrib.scale_by_muon(
                beta=0.0, nesterov=False, weight_dimension_numbers=matrix_axes_of
            ),
            "other": optax.scale_by_rms(decay, bias_correction=True),
        },
        lambda params: jax.tree.map(
            lambda leaf: "other" if matrix_axes(leaf) is None else "matrix", params
        ),
    )
