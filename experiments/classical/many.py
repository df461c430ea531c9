"""``python -m experiments.classical.many``: many small fits at once, under ``vmap``.

B fits of sums of exponentials in float32, each with its own data, are solved by one
compiled program. Every solver runs until the stopping rule of its defaults holds for
each fit, at most `MOST_STEPS` iterations; a fit counts as solved if its sum of squares
is within `SLACK` of the least that any solver found. Times are medians of `--repeats`
runs, taken in turns in one process; a run of over a minute is not repeated. Bytes are
those of XLA's temporary buffers. Each number of fits appends its lines to a file of
records and is not run again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

import nlcg_optax
from experiments.bench.timing import timed
from experiments.classical.records import complete_lines, make_ready
from experiments.errors import ending_with_a_message, needing
from experiments.records.files import origin
from experiments.registry import look_up
from experiments.report import style

MODULE = "experiments.classical.many"
POINTS = 50  # data of a fit
NOISE = 0.02
MOST_STEPS = 500
TOL = 1e-4  # of the peers' gradients, relative to 1 + |f|: what float32 can reach
SLACK = 1e-3
LONG = 60.0  # seconds after which a run is not repeated
COLORS = {
    "nlcg_optax limited-memory": "#0072b2",
    "nlcg_optax hs+": "#56b4e9",
    "optax lbfgs": "#009e73",
    "optimistix BFGS": "#cc79a7",
    "jaxopt LBFGS": "#e69f00",
}
HEADINGS = (
    "parameters",
    "fits",
    "solver",
    "solved",
    "fits per second",
    "bytes per fit",
    "copies of the parameters",
)

# Start, data -> the least sum of squares of a fit.
Solver = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares solvers on many small fits.

    Attributes:
        parameters: numbers of parameters per fit.
        fits: numbers of fits at once.
        solvers: names of the solvers; all by default.
        repeats: timed runs, after one that is discarded.
        records: file of records, one JSON line each; it is appended to. Delete it after
            a change of the program, of the machine or of `repeats`.
        output: Markdown file of the table; the picture lies beside it.
    """

    parameters: tuple[int, ...] = (3, 10, 50)
    fits: tuple[int, ...] = (1, 8, 64, 512, 8192)
    solvers: tuple[str, ...] = tuple(COLORS)
    repeats: int = 5
    records: Path = Path("runs/many.jsonl")
    output: Path = Path("runs/many.md")


class Row(NamedTuple):
    """One solver on one number of fits."""

    parameters: int
    fits: int
    solver: str
    solved: int
    per_second: float
    bytes_per_fit: float


def curve(p: jax.Array) -> jax.Array:
    """The model: a constant, and pairs of amplitude and rate of a decay."""
    times = jnp.linspace(0.0, 5.0, POINTS, dtype=p.dtype)
    level, amplitudes, rates = p[0], p[1::2], p[2::2]
    rates = rates[: amplitudes.size]
    decays = jnp.exp(-jnp.exp(rates)[:, None] * times)
    rest = 0.0 if amplitudes.size == rates.size else amplitudes[-1] * times
    return level + amplitudes[: rates.size] @ decays + rest


def objective(p: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of squares, with a ridge that makes the minimum unique."""
    return jnp.sum((curve(p) - y) ** 2) + 1e-3 * jnp.sum(p**2)


def data(parameters: int, fits: int) -> tuple[jax.Array, jax.Array]:
    """Starts and data, the same for every solver; seed 0."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(-0.5, 1.0, (fits, parameters))
    clean = jax.vmap(curve)(jnp.asarray(truth, jnp.float32))
    noise = NOISE * rng.normal(size=(fits, POINTS))
    start = 0.1 * rng.normal(size=(fits, parameters))
    return jnp.asarray(start, jnp.float32), clean + jnp.asarray(noise, jnp.float32)


def _ours(method: str) -> Solver:
    def solve(p: jax.Array, y: jax.Array) -> jax.Array:
        return nlcg_optax.minimize(
            objective, p, y, method=method, max_iterations=MOST_STEPS
        ).fun

    return solve


def _optax_lbfgs(p: jax.Array, y: jax.Array) -> jax.Array:
    tx = optax.lbfgs()

    def fun(v: jax.Array) -> jax.Array:
        return objective(v, y)

    value_and_grad = optax.value_and_grad_from_state(fun)

    def body(carry: Any) -> Any:
        v, state, k, _ = carry
        value, grad = value_and_grad(v, state=state)
        updates, state = tx.update(grad, state, v, value=value, grad=grad, value_fn=fun)
        new = optax.tree.get(state, "grad")
        value = optax.tree.get(state, "value")
        small = jnp.max(jnp.abs(new)) <= TOL * (1 + jnp.abs(value))
        done = small | jnp.all(updates == 0)
        return optax.apply_updates(v, updates), state, k + 1, done

    start = (p, tx.init(p), jnp.zeros([], jnp.int32), jnp.zeros([], jnp.bool_))
    v, *_ = jax.lax.while_loop(lambda c: ~c[3] & (c[2] < MOST_STEPS), body, start)
    return fun(v)


def _optimistix_bfgs(p: jax.Array, y: jax.Array) -> jax.Array:
    import optimistix

    end = optimistix.minimise(
        objective,
        optimistix.BFGS(rtol=TOL, atol=TOL),
        p,
        args=y,
        max_steps=MOST_STEPS,
        throw=False,
    )
    return objective(end.value, y)


def _jaxopt_lbfgs(p: jax.Array, y: jax.Array) -> jax.Array:
    import jaxopt

    solver = jaxopt.LBFGS(
        objective, tol=TOL, maxiter=MOST_STEPS, implicit_diff=False, jit=True
    )
    return objective(solver.run(p, y).params, y)


SOLVERS: dict[str, Solver] = {
    "nlcg_optax limited-memory": _ours("limited-memory"),
    "nlcg_optax hs+": _ours("hs+"),
    "optax lbfgs": _optax_lbfgs,
    "optimistix BFGS": _optimistix_bfgs,
    "jaxopt LBFGS": _jaxopt_lbfgs,
}


def compare(parameters: int, fits: int, config: Config) -> list[Row]:
    """One row per solver."""
    given = data(parameters, fits)
    programs: dict[str, Any] = {}
    taken: dict[str, list[float]] = {}
    for solver in config.solvers:
        program = jax.jit(jax.vmap(SOLVERS[solver])).lower(*given).compile()
        programs[solver], taken[solver] = program, []
    values: dict[str, np.ndarray] = {}
    for _ in range(config.repeats + 1):
        for solver, program in programs.items():
            if taken[solver] and taken[solver][0] > LONG:
                continue
            seconds, value = timed(program, *given)
            taken[solver].append(seconds)
            values[solver] = np.asarray(value)
    finite = [np.where(np.isfinite(v), v, np.inf) for v in values.values()]
    ceiling = (1 + SLACK) * np.min(finite, axis=0)
    return [
        Row(
            parameters,
            fits,
            solver,
            int(np.sum(values[solver] <= ceiling)),
            fits / statistics.median(taken[solver][1:] or taken[solver]),
            programs[solver].memory_analysis().temp_size_in_bytes / fits,
        )
        for solver in config.solvers
    ]


def recorded(config: Config) -> list[Row]:
    """The rows of the file of records, after the missing ones have been run.

    The solvers of a number of fits are timed in turns, so all of them run again if one
    is missing.

    Raises:
        ValueError: if a line is not a record; the message names file and line.
    """
    make_ready(config.records)
    known: dict[tuple[int, int], dict[str, Row]] = {}
    for number, line in enumerate(complete_lines(config.records), start=1):
        try:
            found = json.loads(line)
            row = Row(**{name: found[name] for name in Row._fields})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{config.records}:{number} is not a record of {MODULE}"
            ) from error
        known.setdefault((row.parameters, row.fits), {})[row.solver] = row
    rows = []
    for parameters, fits in itertools.product(config.parameters, config.fits):
        own = known.get((parameters, fits), {})
        if not own.keys() >= set(config.solvers):
            new = compare(parameters, fits, config)
            own = {row.solver: row for row in new}
            with config.records.open("a", encoding="utf-8") as file:
                made = origin()
                file.writelines(json.dumps(row._asdict() | made) + "\n" for row in new)
        rows += [own[solver] for solver in config.solvers]
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|---:|---:|---|{'---:|' * 4}"]
    lines += [
        f"| {r.parameters} | {r.fits} | {r.solver} | {r.solved} | {r.per_second:.3g} | "
        f"{r.bytes_per_fit:.0f} | {r.bytes_per_fit / (4 * r.parameters):.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws fits per second against their number, a panel per number of parameters."""
    sizes = sorted({row.parameters for row in rows})
    solvers = list(dict.fromkeys(row.solver for row in rows))
    looks = style.looks_of({solver: COLORS[solver] for solver in solvers})
    with style.styled():
        figure, panels = style.new_panels(1, len(sizes), 3.6, sharey=True)
        for panel, size in zip(panels[0], sizes, strict=True):
            for solver in solvers:
                own = [r for r in rows if (r.parameters, r.solver) == (size, solver)]
                panel.plot(
                    [r.fits for r in own],
                    [r.per_second for r in own],
                    label=solver,
                    **looks[solver].line(),
                )
            panel.set(title=f"{size} parameters", xlabel="fits at once")
            style.set_log_scale(panel, "x")
            style.set_log_scale(panel, "y")
        panels[0][0].set_ylabel("fits per second")
        style.add_legend(figure, [panels[0][0]])
        style.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    config = tyro.cli(Config, prog=f"python -m {MODULE}", args=arguments)
    with ending_with_a_message(MODULE, arguments):
        for solver in config.solvers:
            look_up("solvers", solver, SOLVERS)
        with needing("experiments,classical"):
            rows = recorded(config)
        text = table(rows)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text + "\n", encoding="utf-8")
        draw(rows, config.output.with_suffix(".png"))
        Console().print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
