"""``python -m experiments.bench.update``: time and memory of updates, against Adam.

The peers take turns in one process, on a tree with the shapes of ResNet-50. The last
line is for updates outside of ``jit``. The ratios are meaningful on a busy machine, the
milliseconds only on a quiet one.
"""

import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import rich.console
import rich.progress
import rich.table
import tyro

from experiments import models
from experiments.bench.timing import median_ratio, timed
from experiments.bench.update_peers import MATRIX_PEERS, PEERS, REFERENCE, Peers
from experiments.errors import ending_with_a_message
from experiments.records.files import origin

# Otherwise glibc returns large buffers to the kernel after every step, and the page
# faults of allocating them again take longer than the update. A threshold for mmap is
# not enough: glibc refuses one above 32 MiB, and threads have arenas of 64 MiB. Huge
# pages, where Linux allows them, make the time of a peer independent of its place in
# memory, and therefore of the peers before it.
MALLOC_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(2**31),
    "MALLOC_TRIM_THRESHOLD_": str(2**37),
}
MODULE = "experiments.bench.update"
SCALE = 1e-2  # deviation of parameters and gradients
SMALL_LEAVES = 3
EAGER_PEERS = ("nlcg FR", REFERENCE)
EAGER_WARM_UP = 3  # updates before the first that is timed

PyTree = Any
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class BenchArguments:
    """Times the updates of optimizers in turns and prints ratios to Adam.

    Attributes:
      rounds: turns that each peer takes.
      matrices: time Muon and `large_batch_nlcg` instead, whose updates take seconds.
      small: use only the last 3 leaves, to test the command.
      json: file for the figures.
    """

    rounds: int = 20
    matrices: bool = False
    small: bool = False
    json: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds!r} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The measurements of a peer.

    Attributes:
      peer: name of the peer.
      update_ms: median of ``tx.update`` alone, with the state donated.
      update_ratio: median over turns of its time divided by Adam's in the same turn.
      step_ms: median of ``tx.update`` and ``optax.apply_updates`` in one compiled
        step, with parameters and state donated.
      step_ratio: like ``update_ratio``.
      state_per_params: bytes of the state over bytes of the parameters.
      compile_seconds: time of compiling the step, tracing included.
      gigabytes: gigabytes read and written by ``tx.update``, as XLA counts.
    """

    peer: str
    update_ms: float
    update_ratio: float
    step_ms: float
    step_ratio: float
    state_per_params: float
    compile_seconds: float
    gigabytes: float

    @property
    def gigabytes_per_second(self) -> float:
        """The memory bandwidth that the update reaches."""
        return 1e3 * self.gigabytes / self.update_ms


@dataclasses.dataclass(frozen=True)
class EagerMeasurement:
    """Warm updates of NLCG and Adam outside of ``jit``.

    Attributes:
      update_ms: median time of an update of ``EAGER_PEERS[0]``.
      reference_ms: the same for Adam.
      ratio: median over turns of the first over the second in the same turn.
    """

    update_ms: float
    reference_ms: float
    ratio: float


@dataclasses.dataclass
class _Contestant:
    """A peer with its compiled functions, its state and its times so far."""

    update: Callable[..., Any]
    step: Callable[..., Any]
    state: PyTree
    compile_seconds: float
    gigabytes: float
    update_times: list[float] = dataclasses.field(default_factory=list)
    step_times: list[float] = dataclasses.field(default_factory=list)


def measure(
    shapes: Sequence[Shape],
    rounds: int,
    on_turn: Callable[[str], None],
    peers: Peers = PEERS,
) -> list[Measurement]:
    """Measures the peers.

    Args:
      shapes: shapes of the leaves of the parameters.
      rounds: turns that each peer takes, after one that is not counted.
      on_turn: called with the name of the peer whose turn begins.
      peers: the optimizers, including `REFERENCE`.
    """
    params = _random_tree(shapes, seed=0)
    gradients = [_random_tree(shapes, seed=seed) for seed in (1, 2)]
    contestants = {}
    for name, build in peers.items():
        on_turn(name)
        contestants[name] = _contestant(build(), params)
    for turn in range(rounds + 1):
        for name, peer in contestants.items():
            on_turn(name)
            grads = gradients[turn % 2]
            seconds, (updates, peer.state) = timed(
                peer.update, peer.state, grads, params
            )
            del updates
            peer.update_times.append(seconds)
            # The parameters go from peer to peer: their values do not matter.
            seconds, (params, peer.state) = timed(peer.step, params, peer.state, grads)
            peer.step_times.append(seconds)
    params_bytes = _bytes(params)
    adam = contestants[REFERENCE]
    return [
        Measurement(
            peer=name,
            update_ms=1e3 * statistics.median(peer.update_times[1:]),
            update_ratio=median_ratio(peer.update_times, adam.update_times),
            step_ms=1e3 * statistics.median(peer.step_times[1:]),
            step_ratio=median_ratio(peer.step_times, adam.step_times),
            state_per_params=_bytes(peer.state) / params_bytes,
            compile_seconds=peer.compile_seconds,
            gigabytes=peer.gigabytes,
        )
        for name, peer in contestants.items()
    ]


def measure_eager(shapes: Sequence[Shape], rounds: int) -> EagerMeasurement:
    """Times ``tx.update`` without ``jit``, in turns.

    Args:
      shapes: shapes of the leaves of the parameters.
      rounds: turns that each peer takes, after a few that are not counted.
    """
    params = _random_tree(shapes, seed=0)
    gradients = [_random_tree(shapes, seed=seed) for seed in (1, 2)]
    transformations = {name: PEERS[name]() for name in EAGER_PEERS}
    states = {name: tx.init(params) for name, tx in transformations.items()}
    times: dict[str, list[float]] = {name: [] for name in EAGER_PEERS}
    for turn in range(EAGER_WARM_UP + rounds):
        for name, tx in transformations.items():
            seconds, (updates, states[name]) = timed(
                tx.update, gradients[turn % 2], states[name], params
            )
            del updates
            if turn >= EAGER_WARM_UP:
                times[name].append(seconds)
    mine, reference = (times[name] for name in EAGER_PEERS)
    return EagerMeasurement(
        update_ms=1e3 * statistics.median(mine),
        reference_ms=1e3 * statistics.median(reference),
        ratio=statistics.median(a / b for a, b in zip(mine, reference, strict=True)),
    )


def _contestant(tx: optax.GradientTransformation, params: PyTree) -> _Contestant:
    def update(state: PyTree, grads: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        return tx.update(grads, state, params)

    def step(params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    start = time.perf_counter()
    compiled_step = (
        jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    )
    seconds = time.perf_counter() - start
    compiled_update = (
        jax.jit(update, donate_argnums=0).lower(state, params, params).compile()
    )
    cost = compiled_update.cost_analysis() or {}
    gigabytes = 1e-9 * cost.get("bytes accessed", math.nan)
    return _Contestant(compiled_update, compiled_step, state, seconds, gigabytes)


def _random_tree(shapes: Sequence[Shape], seed: int) -> PyTree:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [
        SCALE * jax.random.normal(key, shape)
        for key, shape in zip(keys, shapes, strict=True)
    ]


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def table(measurements: Sequence[Measurement], title: str) -> rich.table.Table:
    """The measurements for the terminal."""
    result = rich.table.Table(title=title, title_justify="left")
    result.add_column("peer")
    for heading in (
        "update\nms",
        "update\n/ adam",
        "update\nGB/s",
        "+ apply\nms",
        "+ apply\n/ adam",
        "state\n/ params",
        "compile\ns",
    ):
        result.add_column(heading, justify="right")
    for m in measurements:
        result.add_row(
            m.peer,
            f"{m.update_ms:.2f}",
            f"{m.update_ratio:.2f}",
            f"{m.gigabytes_per_second:.1f}",
            f"{m.step_ms:.2f}",
            f"{m.step_ratio:.2f}",
            f"{m.state_per_params:.2f}",
            f"{m.compile_seconds:.1f}",
        )
    return result


def resnet50_shapes() -> list[Shape]:
    """Shapes of ResNet-50's 161 leaves, 25,557,032 parameters."""
    variables = jax.eval_shape(
        lambda: models.build("resnet50", 1000).init(
            jax.random.key(0), jnp.zeros([1, 224, 224, 3]), train=False
        )
    )
    return [leaf.shape for leaf in jax.tree.leaves(variables["params"])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(BenchArguments, prog=f"python -m {MODULE}", args=arguments)
    with ending_with_a_message(MODULE, arguments, again="start again with"):
        run(given, rich.console.Console())


def run(given: BenchArguments, console: rich.console.Console) -> None:
    """Measures, prints the table and writes the figures."""
    shapes = resnet50_shapes()
    if given.small:
        shapes = shapes[-SMALL_LEAVES:]
    peers = MATRIX_PEERS if given.matrices else PEERS
    turns = len(peers) * (given.rounds + 2)
    with rich.progress.Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=turns)
        measurements = measure(
            shapes,
            given.rounds,
            lambda name: progress.update(task, advance=1, description=name),
            peers,
        )
    device = jax.devices()[0]
    size = sum(leaf.size for leaf in jax.eval_shape(lambda: _random_tree(shapes, 0)))
    title = f"{len(shapes)} leaves, {size:,} float32 parameters, {device.device_kind}"
    console.print(table(measurements, f"{title}, medians of {given.rounds} turns"))
    eager = None if given.matrices else measure_eager(shapes, given.rounds)
    if eager is not None:
        console.print(
            f"a warm update outside of jit: {EAGER_PEERS[0]} {eager.update_ms:.2f} ms, "
            f"{REFERENCE} {eager.reference_ms:.2f} ms, ratio {eager.ratio:.2f}"
        )
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(
            json.dumps(
                {
                    "leaves": len(shapes),
                    "parameters": size,
                    **origin(),
                    "rounds": given.rounds,
                    "eager": None if eager is None else dataclasses.asdict(eager),
                    "measurements": [dataclasses.asdict(m) for m in measurements],
                },
                indent=2,
            )
            + "\n",
            encoding="utf-8",
        )


def _restart_with_malloc_environment() -> None:
    """Replaces this process by one whose allocator keeps its memory."""
    if any(name not in os.environ for name in MALLOC_ENVIRONMENT):
        command = [sys.executable, "-m", MODULE, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **MALLOC_ENVIRONMENT})


if __name__ == "__main__":
    _restart_with_malloc_environment()
    main()
