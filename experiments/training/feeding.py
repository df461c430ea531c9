"""The input of a compiled call: a whole split, or the next batches of a stream."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data import Split, Stream
from experiments.training.meshes import AXES, joined


class Feed(NamedTuple):
    """The inputs of successive calls.

    Attributes:
      shapes: arrays or their shapes, for `jax.jit` to lower.
      open: function from a seed and the number of the next step to the inputs of the
        calls from that step on.
    """

    shapes: Split
    open: Callable[[int, int], Iterator[Split]]


class CallShape(NamedTuple):
    """Numbers of steps, micro-batches per step and examples per micro-batch."""

    steps: int
    micro_batches: int
    micro_batch_size: int


def make_feed(train: Split | Stream, shape: CallShape, mesh: Mesh) -> Feed:
    """A split on the device is passed whole, a stream in batches of ``shape``."""
    if isinstance(train, Split):
        return Feed(train, lambda *_: itertools.repeat(train))
    sharding = NamedSharding(mesh, P(None, None, AXES))

    def open_stream(seed: int, step: int) -> Iterator[Split]:
        micro_batches = train.training_batches(
            seed=seed,
            first=step * shape.micro_batches,
            batch_size=shape.micro_batch_size,
            rows=_rows_of_process(mesh, shape.micro_batch_size),
        )
        while True:
            of_call = itertools.islice(micro_batches, shape.steps * shape.micro_batches)
            local = jax.tree.map(
                lambda *xs: np.stack(xs).reshape(*shape[:2], *xs[0].shape), *of_call
            )
            yield Split(*joined(tuple(local), sharding))

    def spec(dtype: Any, *of_example: int) -> Any:
        return jax.ShapeDtypeStruct((*shape, *of_example), dtype, sharding=sharding)

    return Feed(Split(spec(jnp.uint8, *train.shape), spec(jnp.int32)), open_stream)


def evaluation_batches(stream: Stream, batch_size: int, mesh: Mesh) -> Iterator[Split]:
    """All examples of a stream once, over all devices; the last batch is padded."""
    sharding = NamedSharding(mesh, P(AXES))
    whole = -(-batch_size // mesh.size) * mesh.size
    rows = _rows_of_process(mesh, whole)
    for local in stream.evaluation_batches(batch_size=whole, rows=rows):
        yield Split(*joined(tuple(local), sharding))


def rows_on(devices: Iterable[jax.Device], mesh: Mesh, size: int) -> Sequence[int]:
    """The rows of a batch that some devices of a mesh hold, in increasing order.

    On a slice of TPUs the rows of one host need not be neighbors: the mesh follows the
    coordinates of the chips.
    """
    parts = NamedSharding(mesh, P(AXES)).devices_indices_map((size,))
    return sorted(
        row for device in devices for row in range(*parts[device][0].indices(size))
    )


def _rows_of_process(mesh: Mesh, size: int) -> Sequence[int]:
    return rows_on(mesh.local_devices, mesh, size)
