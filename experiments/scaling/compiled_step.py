"""A training step compiled for a mesh, from shapes alone, and its cost."""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from experiments.config import RunConfig
from experiments.data import Split
from experiments.scaling import peers
from experiments.scaling.collectives import (
    Collective,
    bytes_by_dtype,
    collectives,
    totals,
)
from experiments.training import meshes
from experiments.training.hyperparameters import hyperparameters_of
from experiments.training.state import TrainState
from experiments.training.step import make_step

SCHEDULE_STEPS = 1000  # its length does not change the program

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """The input and output sizes of the network.

    Attributes:
      image_size: height and width of the images, of three channels of one byte each.
      num_classes: width of the output.
    """

    image_size: int = 224
    num_classes: int = 1000


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one device needs for a step.

    Attributes:
      argument_bytes: bytes of state and batch.
      temporary_bytes: bytes of activations, gradients and other temporary arrays.
      peak_bytes: peak memory in bytes, arguments included.
      flops: operations as counted by the compiler, with one iteration per loop.
      bytes_accessed: bytes read and written, counted likewise.
      collectives: count and bytes of each kind; see
        `experiments.scaling.collectives.Collective`.
      collective_bytes: bytes of all kinds.
      collective_bytes_by_dtype: the same, by dtype.
      sent_bytes: bytes that the device sends.
      scalar_collectives: number of collectives of single numbers only.
      compile_seconds: time of compiling, without lowering.
      out_of_memory: message of the compiler, or None.
      not_compiled: why the compilation did not finish, or None.
    """

    argument_bytes: int = 0
    temporary_bytes: int = 0
    peak_bytes: int = 0
    flops: float = 0.0
    bytes_accessed: float = 0.0
    collectives: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    collective_bytes: int = 0
    collective_bytes_by_dtype: Mapping[str, int] = dataclasses.field(
        default_factory=dict
    )
    sent_bytes: float = 0.0
    scalar_collectives: int = 0
    compile_seconds: float = 0.0
    out_of_memory: str | None = None
    not_compiled: str | None = None

    @property
    def failure(self) -> str | None:
        """Why there are no figures, or None."""
        if self.out_of_memory is not None:
            return f"out of memory: {self.out_of_memory}"
        if self.not_compiled is not None:
            return f"not compiled: {self.not_compiled}"
        return None


def lower_step(config: RunConfig, problem: Problem, mesh: Mesh) -> jax.stages.Lowered:
    """Traces the step of a configuration on abstract arrays.

    Args:
      config: configuration of the run; ``batch_size`` must be a number. ``optimizer``
        may also be one of `experiments.scaling.peers.SEARCHING`.
      problem: sizes of images and outputs.
      mesh: mesh of real devices, or of those of a topology.

    Raises:
      ValueError: if a name is unknown or the batch cannot be split equally.
    """
    state, batch = abstract_arguments(config, problem, mesh)
    step = make_step(config, problem.num_classes, SCHEDULE_STEPS, mesh, peers.build)
    return jax.jit(step.update, donate_argnums=0).lower(state, batch)


def abstract_arguments(
    config: RunConfig, problem: Problem, mesh: Mesh
) -> tuple[TrainState, Split]:
    """Shapes, dtypes and shardings of a state and of a batch in micro-batches."""
    parts = config.micro_batches
    if config.batch_size is None or config.batch_size % (parts * mesh.size):
        raise ValueError(
            f"batch_size={config.batch_size!r} must be a multiple of "
            f"{parts * mesh.size}: {mesh.size} devices times {parts} micro-batches"
        )
    step = make_step(config, problem.num_classes, SCHEDULE_STEPS, mesh, peers.build)
    size = problem.image_size
    state = jax.eval_shape(
        lambda: step.init(
            0,
            config.learning_rate,
            hyperparameters_of(config),
            jnp.zeros([1, size, size, 3], jnp.uint8),
        )
    )
    rows = (parts, config.batch_size // parts)
    over_devices = NamedSharding(mesh, meshes.BATCH)
    batch = jax.eval_shape(
        lambda: Split(
            jnp.zeros((*rows, size, size, 3), jnp.uint8), jnp.zeros(rows, jnp.int32)
        )
    )
    return (
        jax.tree.map(_at, state, step.shardings(state)),
        jax.tree.map(lambda leaf: _at(leaf, over_devices), batch),
    )


def cost_of(lowered: jax.stages.Lowered) -> StepCost:
    """Compiles a step; if it does not fit into memory the result says so."""
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return StepCost(
            compile_seconds=time.perf_counter() - start,
            out_of_memory=_essence_of(error),
        )
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    counted: Any = compiled.cost_analysis()
    found = collectives(compiled.as_text() or "")
    return StepCost(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        flops=counted.get("flops", 0.0),
        bytes_accessed=counted.get("bytes accessed", 0.0),
        compile_seconds=seconds,
        **communication_of(found),
    )


def communication_of(found: list[Collective]) -> dict[str, Any]:
    """The fields of a `StepCost` that describe communication.

    All iterations of a loop are counted, or one if the text does not give the number.
    """
    kinds = totals(found)
    return {
        "collectives": {kind: tuple(total) for kind, total in kinds.items()},
        "collective_bytes": sum(total.bytes for total in kinds.values()),
        "collective_bytes_by_dtype": bytes_by_dtype(found),
        "sent_bytes": sum((one.times or 1) * one.sent_bytes for one in found),
        "scalar_collectives": sum(one.times or 1 for one in found if one.is_scalar),
    }


def _at(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _essence_of(error: Exception) -> str:
    """The essential numbers of a message that is pages long."""
    text = str(error)
    needed = re.search(r"\(([\d.]+\w+)\) exceeds available HBM \(([\d.]+\w+)\)", text)
    if needed is None:
        return text.partition("\n")[0][:200]
    return f"{needed[1]} of {needed[2]}"
