"""Reductions of several lists of arrays at once, for inner products on a single CPU.

XLA compiles every sum to a separate kernel, which reads its operands again and adds one
number after the other. Here one kernel, a reduction of several operands, computes
several sums of several arrays: less is read, and the additions do not wait for each
other.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from nlcg_optax.xla import switch

SHARING = 3  # arrays of one shape per kernel; more are no faster
SHORTEST_ROW = 32  # the sums of shorter rows are too many to write quickly
LONGEST_ROW = 8192  # XLA sums longer rows and vectors as quickly
# The most numbers that are added one after the other. Sums of up to 1e7 equal numbers,
# the worst case, were off by up to 53 units of rounding, those of random squares by 4;
# with runs of 8192 by hundreds and by 10, in the same time.
LONGEST_RUN = 256

Arrays: TypeAlias = Sequence[jax.Array]
Reducer: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def larger(x: jax.Array, y: jax.Array) -> jax.Array:
    """The larger of two, elementwise; NaN if either is NaN.

    XLA's own maximum, as a reduction on CPU, may lose NaN (jax 0.10.2).

    Examples:
      >>> import jax.numpy as jnp
      >>> larger(jnp.array([1., jnp.nan, 3.]), jnp.array([2., 2., jnp.nan]))
      Array([ 2., nan, nan], dtype=float32)
    """
    return jax.lax.select((x > y) | (x != x), x, y)


def largest(x: jax.Array, axis: int | None = None) -> jax.Array:
    """The largest element, at least zero; NaN if any element is NaN.

    Examples:
      >>> import jax.numpy as jnp
      >>> largest(jnp.array([[1., 2.], [-3., -4.]]), axis=1)
      Array([2., 0.], dtype=float32)
    """
    is_nan = jnp.any(jnp.isnan(x), axis=axis)
    return jnp.where(is_nan, jnp.nan, jnp.max(x, axis=axis, initial=0))


REDUCTIONS: dict[Reducer, Callable[..., jax.Array]] = {
    jax.lax.add: jnp.sum,
    larger: largest,
}


def reductions(
    lists: Sequence[Arrays], reducers: Sequence[Reducer], dtype: Any
) -> list[jax.Array]:
    """Computes the sum, or the largest, of all elements of several lists of arrays.

    On a single CPU, lists with the same shapes are reduced together.

    Args:
      lists: lists of real arrays.
      reducers: one per list: ``jax.lax.add`` for a sum or `larger` for the largest
        element, zero if all are negative or there are none.
      dtype: that of the arrays and the results.

    Returns:
      One scalar per list.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> x, y = jnp.ones([2, 40]), jnp.ones([3])
      >>> reductions([[x, y], [2 * x, -y]], [jax.lax.add, larger], jnp.float32)
      [Array(83., dtype=float32), Array(2., dtype=float32)]
    """
    lists, reducers = [list(arrays) for arrays in lists], tuple(reducers)
    shapes = [[array.shape for array in arrays] for arrays in lists]
    alike = len(lists) > 1 and all(x == shapes[0] for x in shapes)
    if alike and switch.on_one_cpu(lists):
        return _joint_on_cpu(lists, reducers, jnp.dtype(dtype))
    return plain_reductions(lists, reducers, dtype)


def plain_reductions(
    lists: Sequence[Arrays], reducers: Sequence[Reducer], dtype: Any
) -> list[jax.Array]:
    """The plain twin of `reductions`: array by array."""
    return [
        functools.reduce(
            reducer, map(REDUCTIONS[reducer], arrays), jnp.zeros([], dtype)
        )
        for reducer, arrays in zip(reducers, lists, strict=True)
    ]


# Compiled once for all eager calls with arrays of these shapes: JAX would compile the
# reduction of several operands, whose reducer is a new function, at every call.
@functools.partial(jax.jit, static_argnames=("reducers", "dtype"), inline=True)
def _joint_on_cpu(
    lists: list[list[jax.Array]], reducers: tuple[Reducer, ...], dtype: jnp.dtype
) -> list[jax.Array]:
    return jax.lax.platform_dependent(
        lists,
        cpu=lambda lists: _joint(lists, reducers, dtype),
        default=lambda lists: plain_reductions(lists, reducers, dtype),
    )


def _joint(
    lists: Sequence[Arrays], reducers: tuple[Reducer, ...], dtype: Any
) -> list[jax.Array]:
    """Merges arrays of one shape, then reduces rows, then the vectors of these sums."""
    totals: Arrays = []
    vectors: dict[int, Arrays] = {}
    for arrays in _alike_merged(reducers, list(zip(*lists, strict=True))):
        shape = arrays[0].shape
        row = _row_length(shape) if len(shape) > 1 else None
        if row is not None:
            arrays = _reduced_rows(reducers, *(x.reshape(-1, row) for x in arrays))
        if row is not None or (len(shape) < 2 and arrays[0].size <= LONGEST_ROW):
            length = arrays[0].size
            arrays = [x.reshape(length) for x in arrays]
            if length in vectors:
                arrays = _merged(reducers, vectors[length], arrays)
            vectors[length] = arrays
        else:
            reduced = [
                REDUCTIONS[reducer](x)
                for reducer, x in zip(reducers, arrays, strict=True)
            ]
            totals = _merged(reducers, totals, reduced)
    for arrays in vectors.values():
        while arrays[0].ndim:
            arrays = _reduced_rows(reducers, *map(_in_runs, arrays))
        totals = _merged(reducers, totals, arrays)
    return list(totals) or [jnp.zeros([], dtype)] * len(lists)


def _merged(reducers: tuple[Reducer, ...], xs: Arrays, ys: Arrays) -> Arrays:
    if not xs:
        return ys
    return [reduce(x, y) for reduce, x, y in zip(reducers, xs, ys, strict=True)]


def _alike_merged(
    reducers: tuple[Reducer, ...], by_position: Sequence[Arrays]
) -> list[Arrays]:
    """Merges up to `SHARING` arrays of one shape, element by element."""
    by_shape: dict[tuple[int, ...], list[Arrays]] = {}
    for arrays in by_position:
        by_shape.setdefault(arrays[0].shape, []).append(arrays)
    return [
        functools.reduce(
            functools.partial(_merged, reducers), alike[start : start + SHARING]
        )
        for alike in by_shape.values()
        for start in range(0, len(alike), SHARING)
    ]


def _row_length(shape: tuple[int, ...]) -> int | None:
    """Number of elements of a row, a part of the trailing axes; None for no rows."""
    row = 1
    for length in reversed(shape):
        row *= length
        if row >= SHORTEST_ROW:
            break
    if not (0 < row <= LONGEST_ROW and math.prod(shape) <= row * LONGEST_ROW):
        return None
    if row <= LONGEST_RUN:
        return row
    parts = range(LONGEST_RUN, SHORTEST_ROW - 1, -1)
    return next((part for part in parts if row % part == 0), None)


def _in_runs(vector: jax.Array) -> jax.Array:
    """A long vector as rows of at most `LONGEST_RUN`, padded with zeros."""
    count = -(-vector.size // LONGEST_RUN)
    if count < 2:
        return vector
    run = -(-vector.size // count)
    return jnp.pad(vector, (0, count * run - vector.size)).reshape(count, run)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _reduced_rows(reducers: tuple[Reducer, ...], *arrays: jax.Array) -> Arrays:
    return jax.lax.reduce(
        list(arrays),
        [jnp.zeros([], x.dtype) for x in arrays],
        functools.partial(_merged, reducers),
        [arrays[0].ndim - 1],
    )


@_reduced_rows.defjvp
def _reduced_rows_jvp(
    reducers: tuple[Reducer, ...], primals: Arrays, tangents: Arrays
) -> tuple[Arrays, Arrays]:
    # JAX's derivative of a reduction of several operands is a scan.
    derivatives = [
        jax.jvp(functools.partial(REDUCTIONS[reducer], axis=-1), (x,), (t,))[1]
        for reducer, x, t in zip(reducers, primals, tangents, strict=True)
    ]
    return _reduced_rows(reducers, *primals), derivatives
