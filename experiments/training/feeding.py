"""The input of a compiled call: a whole split, or the next batches of a stream."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data import Share, Split, Stream
from experiments.data.image_sets import LabeledImages
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
        share = _share_of_process()
        batches = train.training_batches(
            seed=seed,
            first=step,
            batch_size=shape.micro_batches * shape.micro_batch_size,
            share=share,
        )
        while True:
            steps = list(itertools.islice(batches, shape.steps))
            local = jax.tree.map(lambda *xs: np.stack(xs), *steps)
            parts = _in_parts(local, shape.micro_batches)
            yield Split(*joined(tuple(parts), sharding))

    def spec(dtype: Any, *of_example: int) -> Any:
        return jax.ShapeDtypeStruct((*shape, *of_example), dtype, sharding=sharding)

    return Feed(Split(spec(jnp.uint8, *train.shape), spec(jnp.int32)), open_stream)


def evaluation_batches(stream: Stream, batch_size: int, mesh: Mesh) -> Iterator[Split]:
    """All examples of a stream once, over all devices; the last batch is padded."""
    sharding = NamedSharding(mesh, P(AXES))
    whole = -(-batch_size // mesh.size) * mesh.size
    share = _share_of_process()
    for local in stream.evaluation_batches(batch_size=whole, share=share):
        yield Split(*joined(tuple(local), sharding))


def _share_of_process() -> Share:
    return Share(jax.process_index(), jax.process_count())


def _in_parts(local: LabeledImages, parts: int) -> LabeledImages:
    return jax.tree.map(lambda x: x.reshape(len(x), parts, -1, *x.shape[2:]), local)
