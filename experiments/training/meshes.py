"""Where arrays live: a mesh with two axes, and one rule from shapes to shardings.

A batch is split over all devices, ``data`` times ``shard``. Parameters and the arrays
of the optimizer's state are split over ``shard`` and replicated along ``data``: one
device along ``shard`` is data parallelism, one along ``data`` is fully sharded,
anything in between is hybrid.
"""

import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.registry import look_up
from experiments.training.processes import is_first

PyTree = Any

DATA, SHARD = AXES = ("data", "shard")
AXIS_TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
BATCH = P(None, AXES)  # micro-batches, then examples

# For smaller arrays, gathering costs more than the memory of the replicas.
SMALLEST_SHARDED = 2048

_log = logging.getLogger(__name__)


def make_mesh(
    data_devices: int | None = None,
    shard_devices: int | None = 1,
    *,
    axis_types: str = "auto",
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arranges devices along the axes ``data`` and ``shard``.

    Args:
      data_devices: size of the first axis; None to use all remaining devices.
      shard_devices: size of the second axis, likewise; at most one of the two may be
        None. Neighboring devices share one replica of the parameters.
      axis_types: a name in `AXIS_TYPES`.
      devices: devices to arrange; all devices of all processes by default.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, or the kind
        of axes is unknown.

    Examples:
      >>> dict(make_mesh(1, None, devices=jax.devices()[:2]).shape)
      {'data': 1, 'shard': 2}
    """
    kind = look_up("axis_types", axis_types, AXIS_TYPES)
    if devices is None:
        devices = jax.devices()
    shape = _filled(data_devices, shard_devices, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(kind, kind), devices=devices)


def _filled(data: int | None, shard: int | None, count: int) -> tuple[int, int]:
    given = f"data_devices={data!r} and shard_devices={shard!r}"
    if data is None and shard is None:
        raise ValueError(f"{given}: at most one of them may be None")
    known = (data or 1) * (shard or 1)
    if count % known or (None not in (data, shard) and known != count):
        raise ValueError(
            f"{given} do not multiply to {count}, the number of devices; allowed are "
            "two numbers with that product, or a divisor of it and None"
        )
    rest = count // known
    return data or rest, shard or rest


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def spec_of(shape: tuple[int, ...], shards: int) -> P:
    """Splits the largest dimension that ``shards`` divides, the last among equals.

    Scalars, arrays of fewer than `SMALLEST_SHARDED` numbers and those without such a
    dimension are replicated. The rule depends on nothing but the shape, so a state with
    the shape of its parameter is split like it.

    Examples:
      >>> spec_of((3, 3, 256, 128), 8)
      P(None, None, 'shard', None)
      >>> spec_of((64,), 8), spec_of((7, 1001), 8)
      (P(), P())
    """
    sizes = [(size, at) for at, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or math.prod(shape) < SMALLEST_SHARDED or not sizes:
        return P()
    _, chosen = max(sizes)
    return P(*(SHARD if at == chosen else None for at in range(len(shape))))


def shardings_of(mesh: Mesh, tree: PyTree) -> PyTree:
    """The sharding of every leaf of a tree of arrays or abstract arrays."""
    shards = mesh.shape[SHARD]
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec_of(leaf.shape, shards)), tree
    )


def report_copies(mesh: Mesh, params: PyTree) -> None:
    """Logs, once and on the first process, large parameters that cannot be split."""
    shards = mesh.shape[SHARD]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    copied = [
        f"{jax.tree_util.keystr(path)} {leaf.shape}"
        for path, leaf in leaves
        if leaf.size >= SMALLEST_SHARDED and spec_of(leaf.shape, shards) == P()
    ]
    if shards > 1 and copied and is_first():
        _warn_once(
            f"no dimension of {len(copied)} of {len(leaves)} parameters is divisible "
            f"by shard_devices={shards}: every device holds a copy of "
            f"{', '.join(copied)}"
        )


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Places arrays, which every process holds in full, with the given shardings."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    # `device_put` cannot reach devices of other processes, but a computation can.
    return jax.jit(lambda arrays: arrays, out_shardings=shardings)(tree)


def constrain(tree: PyTree, shardings: PyTree) -> PyTree:
    """Constrains the shardings of arrays, except on a mesh of one device.

    So a step on one device can be mapped over other devices.
    """
    if all(sharding.mesh.size == 1 for sharding in jax.tree.leaves(shardings)):
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings)


def on_all_devices(tree: PyTree) -> PyTree:
    """Copies arrays, which every process holds in full, to all devices."""
    everywhere = replicated(make_mesh())
    tree = jax.tree.map(np.asarray, tree)
    return place(tree, jax.tree.map(lambda _: everywhere, tree))


def joined(parts: PyTree, sharding: NamedSharding) -> PyTree:
    """Joins the parts of a batch that the processes hold.

    Args:
      parts: arrays of the examples that this process's devices hold, in the order of
        the whole; of equal shape on all processes.
      sharding: sharding of the whole arrays, such as that of `BATCH`.

    Returns:
      Arrays of the examples of all processes.
    """
    return jax.tree.map(
        lambda part: jax.make_array_from_process_local_data(sharding, np.asarray(part)),
        parts,
    )


def with_auto_axes(mesh: Mesh) -> Mesh:
    """The same devices on axes that are left to the compiler."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * 2)
