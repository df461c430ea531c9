"""``python -m experiments.bench.curvature``: what curvature costs, in gradients.

The peers take turns in one process, on a small residual network and one batch of random
images; every time is divided by that of the gradient in the same turn. The ratios are
meaningful on a busy machine, the milliseconds only on a quiet one.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
import rich.console
import rich.progress
import rich.table
import tyro

from experiments.bench.curvature_peers import (
    EVERY_STEP,
    GRADIENT,
    PERIOD,
    Inputs,
    Problem,
    functions,
    make_problem,
    make_step,
    optimizers,
)
from experiments.bench.timing import median_ratio, timed
from experiments.errors import ending_with_a_message
from experiments.records.files import origin

PyTree = Any

MODULE = "experiments.bench.curvature"


@dataclasses.dataclass(frozen=True)
class BenchCurvatureArguments:
    """Times curvature products and second-order steps, as ratios to one gradient.

    Attributes:
      rounds: turns that each peer takes.
      model: name of a model of `experiments.models`.
      batch_size: images in the batch.
      image_size: height and width of the images, in pixels.
      peers: what to time besides the gradient: all peers whose names contain one of
        these texts, such as "step of"; all by default.
      json: file for the figures.
    """

    rounds: int = 7
    model: str = "resnet8"
    batch_size: int = 64
    image_size: int = 32
    peers: tuple[str, ...] = ()
    json: Path | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "batch_size", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was measured of a peer.

    Attributes:
      peer: its name.
      ms: median of its time; for an optimizer, of a step.
      least_ms: its least time.
      ratio: median over turns of its time divided by the gradient's in the same turn.
      target: what the ratio should not exceed, if there is such a number.
    """

    peer: str
    ms: float
    least_ms: float
    ratio: float
    target: float | None


def measure(
    problem: Problem,
    rounds: int,
    on_turn: Callable[[str], None],
    peers: Sequence[str] = (),
) -> list[Measurement]:
    """Measures the gradient and its peers.

    Args:
      problem: the network on its batch.
      rounds: turns that each peer takes, after one that is not counted.
      on_turn: called with the name of the peer whose turn begins.
      peers: parts of the names of the peers; all if empty.

    Raises:
      ValueError: if one of ``peers`` is in no name.
    """
    chosen = chosen_names(problem, peers)
    calls: dict[str, Callable[[], float]] = {}
    targets: dict[str, float | None] = {}
    for name, (function, target) in functions(problem).items():
        if name in chosen:
            on_turn(name)
            calls[name], targets[name] = _call(problem, function), target
    for name, (tx, target) in optimizers().items():
        if name in chosen:
            on_turn(name)
            calls[name] = _steps(problem, tx, amortized=name not in EVERY_STEP)
            targets[name] = target
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            on_turn(name)
            times[name].append(call())
    return [
        Measurement(
            peer=name,
            ms=1e3 * statistics.median(own[1:]),
            least_ms=1e3 * min(own[1:]),
            ratio=median_ratio(own, times[GRADIENT]),
            target=targets[name],
        )
        for name, own in times.items()
    ]


def chosen_names(problem: Problem, peers: Sequence[str]) -> list[str]:
    """The gradient and all peers whose names contain one of ``peers``; all if empty.

    Raises:
      ValueError: if one of ``peers`` is in no name.
    """
    names = [*functions(problem), *optimizers()]
    for text in peers:
        if not any(text in name for name in names):
            raise ValueError(f"peers has {text!r}, which is in none of {names}")
    return [
        name
        for name in names
        if name == GRADIENT or not peers or any(text in name for text in peers)
    ]


def _call(problem: Problem, function: Callable[[Inputs], Any]) -> Callable[[], float]:
    """A turn of a function: the time of one call."""
    compiled = jax.jit(function).lower(problem.inputs).compile()
    return lambda: timed(compiled, problem.inputs)[0]


def _steps(
    problem: Problem, tx: optax.GradientTransformation, *, amortized: bool
) -> Callable[[], float]:
    """A turn of an optimizer: the mean time of a step over one period of refreshes."""
    start = (tx.init(problem.inputs.params), problem.inputs)
    # Convolutions are slow inside XLA's conditionals on CPUs: two programs take turns.
    first, others = (
        jax.jit(make_step(problem, tx, refresh)).lower(*start).compile()
        for refresh in ((True, False) if amortized else (None, None))
    )

    def run(carry: tuple[PyTree, Inputs]) -> tuple[PyTree, Inputs]:
        carry = first(*carry)
        for _ in range(PERIOD - 1):
            carry = others(*carry)
        return carry

    # Every turn begins anew: the effect of long training on the numbers is irrelevant.
    return lambda: timed(run, start)[0] / PERIOD


def table(measurements: Sequence[Measurement], title: str) -> rich.table.Table:
    """The measurements for the terminal."""
    result = rich.table.Table(title=title, title_justify="left")
    result.add_column("peer")
    for heading in ("ms", "least ms", "/ gradient", "target"):
        result.add_column(heading, justify="right")
    for m in measurements:
        target = "" if m.target is None else f"{m.target:g}"
        result.add_row(
            m.peer, f"{m.ms:.1f}", f"{m.least_ms:.1f}", f"{m.ratio:.2f}", target
        )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(
        BenchCurvatureArguments, prog=f"python -m {MODULE}", args=arguments
    )
    with ending_with_a_message(MODULE, arguments, again="start again with"):
        run(given, rich.console.Console())


def run(given: BenchCurvatureArguments, console: rich.console.Console) -> None:
    """Measures, prints the table and writes the figures."""
    problem = make_problem(given.model, given.batch_size, given.image_size)
    peers = len(chosen_names(problem, given.peers))
    with rich.progress.Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=peers * (given.rounds + 2))
        measurements = measure(
            problem,
            given.rounds,
            lambda name: progress.update(task, advance=1, description=name),
            given.peers,
        )
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.inputs.params))
    device = jax.devices()[0].device_kind
    title = (
        f"{given.model}, {size:,} parameters, {given.batch_size} images, {device}, "
        f"medians of {given.rounds} turns"
    )
    console.print(table(measurements, title))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "model": given.model,
            "parameters": size,
            "batch_size": given.batch_size,
            "image_size": given.image_size,
            **origin(),
            "rounds": given.rounds,
            "measurements": [dataclasses.asdict(m) for m in measurements],
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
