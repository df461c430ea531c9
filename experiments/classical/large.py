"""``python -m experiments.classical.large``: a million parameters and more.

Time and memory per iteration of `minimize` and of `optax.lbfgs` in float32, on one
device and split over several virtual ones of the CPU. Every solver is one compiled
program with a fixed number of iterations; times are medians over turns in one process,
and bytes are those that XLA's buffers need at the same time. The last columns show
whether splitting changes the result, and the largest array that devices gather.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

import nlcg_optax
from experiments.bench.timing import timed
from experiments.classical.records import made_with
from experiments.errors import ending_with_a_message
from experiments.virtual_devices import ask_for_virtual_devices
from nlcg_optax.minimization.methods import limited_memory_method

REFERENCE = "optax lbfgs, 10 pairs"
COLLECTIVES = re.compile(
    r"= [a-z0-9]+\[([\d,]*)\][^=]*? (?:all-gather|all-to-all|collective-permute)\("
)
HEADINGS = (
    "parameters",
    "devices",
    "solver",
    "iterations",
    f"time per iteration / {REFERENCE}",
    "ms per iteration",
    "copies of the parameters",
    "objective at the end",
    "difference from one device",
    "largest array gathered",
)

# Start, number of iterations -> the objective and the iterations made.
Run = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares the cost of an iteration on large problems.

    Attributes:
        parameters: numbers of parameters, even.
        devices: numbers of virtual CPU devices; the first must be 1.
        iterations: iterations of each run.
        repeats: timed runs, after one that is discarded.
        output: Markdown file of the table.
    """

    parameters: tuple[int, ...] = (1_000_000, 10_000_000)
    devices: tuple[int, ...] = (1, 4)
    iterations: int = 20
    repeats: int = 5
    output: Path = Path("runs/large.md")

    def __post_init__(self) -> None:
        if self.devices[:1] != (1,):
            raise ValueError(f"devices={self.devices!r} must begin with 1")


def objective(x: jax.Array) -> jax.Array:
    """The mean of Rosenbrock's function over pairs, each with its own curvature."""
    u, v = x
    weights = 1 + 99 * jnp.arange(u.size, dtype=x.dtype).reshape(u.shape) / u.size
    return jnp.mean(weights * (v - u**2) ** 2 + (1 - u) ** 2)


def start(parameters: int) -> np.ndarray:
    """Pairs around Rosenbrock's start; seed 0."""
    noise = np.random.default_rng(0).normal(size=(2, parameters // 2))
    return (np.array([[-1.2], [1.0]]) + 0.1 * noise).astype(np.float32)


def _ours(method: Any) -> Run:
    def run(x: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
        found = nlcg_optax.minimize(
            objective, x, method=method, tol=1e-30, max_iterations=iterations
        )
        return found.fun, found.nit

    return run


def _optax_lbfgs(x: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def body(_: Any, carry: Any) -> Any:
        x, state = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = tx.update(
            grad, state, x, value=value, grad=grad, value_fn=objective
        )
        return optax.apply_updates(x, updates), state

    _, state = jax.lax.fori_loop(0, iterations, body, (x, tx.init(x)))
    return optax.tree.get(state, "value"), jnp.asarray(iterations)


def solvers() -> dict[str, Run]:
    """All solvers by name."""
    return {
        "nlcg_optax limited-memory, 31 pairs": _ours("limited-memory"),
        "nlcg_optax limited-memory, 10 pairs": _ours(limited_memory_method(10)),
        "nlcg_optax hs+": _ours("hs+"),
        REFERENCE: _optax_lbfgs,
    }


def largest_gathered(text: str) -> int:
    """Numbers in the largest array that a compiled program moves between devices.

    Sums over devices do not count.

    Examples:
      >>> largest_gathered("%x = f32[8,100]{1,0} all-gather(%y), dimensions={1}")
      800
    """
    found = (m.group(1) for m in COLLECTIVES.finditer(text))
    sizes = [int(np.prod([int(n) for n in s.split(",") if n] or [1])) for s in found]
    return max(sizes, default=0)


def compare(
    parameters: int, devices: int, config: Config, alone: dict[str, float]
) -> list[str]:
    """Rows of one size on some devices; ``alone`` has the values of one device."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("part",))
    split = jax.sharding.PartitionSpec(None, "part")
    x = jax.device_put(start(parameters), jax.sharding.NamedSharding(mesh, split))
    programs: dict[str, Any] = {}
    for solver, run in solvers().items():
        bound = jax.jit(lambda x, run=run: run(x, config.iterations))
        programs[solver] = bound.lower(x).compile()
    taken: dict[str, list[float]] = {solver: [] for solver in programs}
    ends: dict[str, tuple[float, int]] = {}
    for _ in range(config.repeats + 1):
        for solver, program in programs.items():
            seconds, (value, nit) = timed(program, x)
            ends[solver] = float(value), int(nit)
            taken[solver].append(seconds / max(int(nit), 1))
    per = {s: statistics.median(times[1:]) for s, times in taken.items()}
    rows = []
    for solver, program in programs.items():
        value, nit = ends[solver]
        alone.setdefault(solver, value)
        memory = program.memory_analysis()
        used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        difference = abs(value - alone[solver]) / abs(alone[solver])
        cells = (
            f"{parameters:.0e}",
            devices,
            solver,
            nit,
            f"{per[solver] / per[REFERENCE]:.2f}",
            f"{1e3 * per[solver]:.1f}",
            f"{devices * used / (4 * parameters):.1f}",
            f"{value:.6e}",
            f"{difference:.0e}",
            largest_gathered(program.as_text()),
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    module = "experiments.classical.large"
    config = tyro.cli(Config, prog=f"python -m {module}", args=arguments)
    with ending_with_a_message(module, arguments, again="start again with"):
        count = max(config.devices)
        ask_for_virtual_devices(count)  # nothing above starts a device
        if jax.device_count() < count:
            raise ValueError(f"devices={count} are more than the {jax.device_count()}")
        lines = [f"| {' | '.join(HEADINGS)} |", f"|---:|---:|---|{'---:|' * 7}"]
        for parameters in config.parameters:
            alone: dict[str, float] = {}
            for devices in config.devices:
                lines += compare(parameters, devices, config, alone)
        text = "\n".join([*lines, "", made_with()])
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text + "\n", encoding="utf-8")
        Console().print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
