"""Sums of several lists of arrays at once: how a single CPU takes inner products.

XLA gives every sum a kernel of its own, which reads its operands again and adds one
number after the other. Here one kernel, a reduction of several operands, takes several
sums of several arrays: less is read, and the additions do not wait for each other.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

SHARING = 3  # arrays of one shape in a kernel; more are no faster
SHORTEST_ROW = 32  # sums of shorter rows would take long to write
# So many numbers at most are added up one after the other: each sum is off by so many
# units of rounding at worst, and by the root of that on average.
LONGEST_RUN = 8192

Arrays: TypeAlias = Sequence[jax.Array]


def joint_sums(lists: Sequence[Arrays], dtype: Any) -> list[jax.Array]:
    """Computes the sum of all elements of each of several lists of arrays.

    Arrays of one shape are added to each other, then the rows of what there is are
    summed, and vectors of these sums treated likewise.

    Args:
      lists: lists of real arrays, with the same shapes in every list. Arrays that are
        split over devices would be gathered.
      dtype: of the arrays and the sums.

    Returns:
      A scalar a list.

    Examples:
      >>> import jax.numpy as jnp
      >>> x, y = jnp.ones([2, 40]), jnp.ones([3])
      >>> joint_sums([[x, y], [2 * x, -y]], jnp.float32)
      [Array(83., dtype=float32), Array(157., dtype=float32)]
    """
    totals: Arrays = [jnp.zeros([], dtype)] * len(lists)
    vectors: dict[int, Arrays] = {}
    for arrays in _alike_added(list(zip(*lists, strict=True))):
        shape = arrays[0].shape
        row = _row_length(shape)
        if len(shape) > 1 and row is not None:
            arrays = _sums_of_rows(*(x.reshape(-1, row) for x in arrays))
        if arrays[0].ndim < 2 and arrays[0].size <= LONGEST_RUN:
            length = arrays[0].size
            arrays = [x.reshape(length) for x in arrays]
            known = length in vectors
            vectors[length] = _added(vectors[length], arrays) if known else arrays
        else:
            totals = _added(totals, [jnp.sum(x) for x in arrays])
    for arrays in vectors.values():
        totals = _added(totals, _sums_of_rows(*arrays))
    return list(totals)


def _added(xs: Arrays, ys: Arrays) -> Arrays:
    return [x + y for x, y in zip(xs, ys, strict=True)]


def _alike_added(by_position: Sequence[Arrays]) -> list[Arrays]:
    """Adds up to `SHARING` arrays of one shape, element by element."""
    by_shape: dict[tuple[int, ...], list[Arrays]] = {}
    for arrays in by_position:
        by_shape.setdefault(arrays[0].shape, []).append(arrays)
    return [
        functools.reduce(_added, alike[start : start + SHARING])
        for alike in by_shape.values()
        for start in range(0, len(alike), SHARING)
    ]


def _row_length(shape: tuple[int, ...]) -> int | None:
    """Number of elements of the trailing axes that make a row; None for no rows."""
    row = 1
    for length in reversed(shape):
        row *= length
        if row >= SHORTEST_ROW:
            break
    fits = 0 < row <= LONGEST_RUN and math.prod(shape) <= row * LONGEST_RUN
    return row if fits else None


@jax.custom_jvp
def _sums_of_rows(*arrays: jax.Array) -> Arrays:
    return jax.lax.reduce(
        list(arrays),
        [jnp.zeros([], x.dtype) for x in arrays],
        _added,
        [arrays[0].ndim - 1],
    )


@_sums_of_rows.defjvp
def _sums_of_rows_jvp(primals: Arrays, tangents: Arrays) -> tuple[Arrays, Arrays]:
    # JAX's derivative of a reduction of several operands is a scan.
    return _sums_of_rows(*primals), [jnp.sum(t, axis=-1) for t in tangents]
