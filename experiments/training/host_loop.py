"""A training call that loops over micro-batches on the host.

Three small programs, the same for any number of micro-batches: one chooses the
examples of a step, one adds the gradient of a micro-batch, one updates. A compiled loop
is either rolled, where XLA on a CPU is slow at convolutions, or unrolled into a program
that grows with the number of micro-batches.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Split
from experiments.training import meshes
from experiments.training.micro_batches import Outcome
from experiments.training.program import Program
from experiments.training.state import TrainState
from experiments.training.step import Metrics

PyTree = Any

# Quantities of a batch that the host has when it updates. Everything else is a function
# of the whole batch, evaluated within the update.
AVAILABLE = frozenset({"value", "grad"})


def takes_host_loop(program: Program) -> bool:
    """Whether a run loops over micro-batches on the host, as its configuration says.

    With ``micro_batch_loop="auto"`` it does on a single CPU device, if there are
    several micro-batches and nothing prevents it.

    Raises:
      ValueError: if the configuration asks for a loop on the host that its optimizer,
        its partitioning or its axis types do not allow.
    """
    config = program.config
    if config.micro_batch_loop == "compiled":
        return False
    reason = _reason_against(program)
    if config.micro_batch_loop == "host":
        if reason is not None:
            raise ValueError(
                f"micro_batch_loop='host' does not allow {reason}; use 'compiled' or "
                "'auto'"
            )
        return True
    on_one_cpu = [d.platform for d in program.mesh.devices.flat] == ["cpu"]
    return config.micro_batches > 1 and on_one_cpu and reason is None


def _reason_against(program: Program) -> str | None:
    config = program.config
    others = sorted(set(program.step.optimizer.extras) - AVAILABLE)
    if others:
        return (
            f"optimizer={config.optimizer!r} with optimizer_options="
            f"{dict(config.optimizer_options)}, which evaluates {', '.join(others)} of "
            "the whole batch"
        )
    if config.partitioning == "shard_map":
        return "partitioning='shard_map', which sends gradients once per step"
    if config.axis_types == "explicit":
        return "axis_types='explicit'"
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class HostLoop:
    """A training call, like a compiled `Program.train`.

    Attributes:
      program: the functions of the run.
      begin: from a state to the rows of a step and sums of zero.
      add: adds a micro-batch.
      finish: from the sums to the next state.
    """

    program: Program
    begin: Callable[..., Any]
    add: Callable[..., Any]
    finish: Callable[..., Any]

    def __call__(self, state: TrainState, split: Split) -> tuple[TrainState, Metrics]:
        """The state after ``steps_per_call`` steps, and the metrics of each, stacked.

        The arguments are those of `Program.train`; the state's memory is donated.
        """
        metrics = []
        for at in range(self.program.steps_per_call):
            rows, total = self.begin(state)
            batch_stats = state.batch_stats
            for index in range(self.program.config.micro_batches):
                numbers = np.int32(at), np.int32(index)
                total, batch_stats = self.add(
                    total, batch_stats, state, split, rows, *numbers
                )
            state, of_step = self.finish(state, total, batch_stats)
            metrics.append(of_step)
        return state, jax.tree.map(lambda *xs: jnp.stack(xs), *metrics)


def compile_host_loop(program: Program, split: Split) -> HostLoop:
    """Compiles the three programs.

    Args:
      program: the functions of the run.
      split: what the call will take, or its shapes.
    """
    count = program.config.micro_batches

    def begin(state: TrainState) -> tuple[jax.Array | None, Outcome]:
        rows = None if program.streamed else program.rows(state, 1)
        nothing = jnp.zeros([], jnp.float32)
        grads = jax.tree.map(jnp.zeros_like, state.params)
        total = Outcome(nothing, nothing, nothing, grads)
        return None if rows is None else rows[0], total

    def add(
        total: Outcome,
        batch_stats: PyTree,
        state: TrainState,
        split: Split,
        rows: jax.Array | None,
        at: jax.Array,
        index: jax.Array,
    ) -> tuple[Outcome, PyTree]:
        if program.streamed:
            batch = jax.tree.map(lambda x: x[at, index], split)
        elif rows is None:
            batch = jax.tree.map(
                lambda x: x.reshape(count, -1, *x.shape[1:])[index], split
            )
        else:
            batch = jax.tree.map(lambda x: x[rows[index]], split)
        outcome, batch_stats = program.step.micro_step(state, batch_stats, batch, index)
        sharded = meshes.shardings_of(program.step.mesh, outcome.grads)
        grads = meshes.constrain(outcome.grads, sharded)
        return jax.tree.map(jnp.add, total, outcome._replace(grads=grads)), batch_stats

    def finish(
        state: TrainState, total: Outcome, batch_stats: PyTree
    ) -> tuple[TrainState, Metrics]:
        outcome = jax.tree.map(lambda leaf: leaf / count, total)
        return program.step.finish(state, outcome, batch_stats, {})

    state = program.init(0, 1.0)
    compiled_begin = jax.jit(begin).lower(state).compile()
    rows, total = compiled_begin(state)
    number = jnp.zeros([], jnp.int32)
    compiled_add = (
        jax.jit(add, donate_argnums=0)
        .lower(total, state.batch_stats, state, split, rows, number, number)
        .compile()
    )
    compiled_finish = (
        jax.jit(finish, donate_argnums=0)
        .lower(state, total, state.batch_stats)
        .compile()
    )
    return HostLoop(program, compiled_begin, compiled_add, compiled_finish)
