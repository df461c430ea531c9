"""``python -m experiments.classical.real_work``: full-batch fitting, with times.

Compares `minimize` with `optax.lbfgs`, `jaxopt.NonlinearCG` and SciPy's L-BFGS-B on
logistic regression and a small network on the digits, and on a physics-informed network
for a boundary value problem. Every compiled solver is one program. Running and
compiling are timed alternately in one process; times are medians of the ratio to
`optax.lbfgs` within a round.

A second table has the first call in a new process and a call with new data of the same
shapes, for a fit of ten parameters, in seconds of processor time.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
import tyro
from jax.flatten_util import ravel_pytree
from rich.console import Console
from sklearn.datasets import load_digits

import nlcg_optax
from experiments.bench.timing import median_ratio, timed
from experiments.classical import first_calls
from experiments.classical.records import made_with
from experiments.errors import ending_with_a_message, needing
from experiments.registry import look_up

Loss = Callable[[Any], jax.Array]
HIDDEN = 32
REPEATS = 12  # rounds of running and of compiling; the first is discarded
COMPILATIONS = 6
BUDGET_STEP = 5  # gradient-equivalents by which "work to the loss" is resolved
SLACK = 1e-3  # a loss this much above the reference's end counts as equal
REFERENCE = "optax lbfgs"
HEADINGS = (
    "problem",
    "solver",
    "loss",
    "iterations",
    "work",
    f"work to the loss of {REFERENCE}",
    f"time per iteration / {REFERENCE}",
    f"time per work / {REFERENCE}",
    f"compile time / {REFERENCE}",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares loss, work and time of solvers on three problems.

    Attributes:
        work: budget of each solver in gradient-equivalents.
        seed: seed of the initial networks.
        output: Markdown file of the table.
        problems: names of the problems; all by default.
        processes: new processes per solver for the table of first calls.
    """

    work: int = 300
    seed: int = 0
    output: Path = Path("runs/real_work.md")
    problems: tuple[str, ...] = ("logistic regression", "network", "boundary value")
    processes: int = 5


def _dense(key: jax.Array, sizes: list[int], dtype: Any) -> list[Any]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (
            jax.random.normal(k, (n, m), dtype) / jnp.sqrt(n).astype(dtype),
            jnp.zeros(m, dtype),
        )
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def _apply(layers: list[Any], x: jax.Array) -> jax.Array:
    for weights, bias in layers[:-1]:
        x = jnp.tanh(x @ weights + bias)
    weights, bias = layers[-1]
    return x @ weights + bias


def logistic(key: jax.Array, dtype: Any) -> tuple[Loss, Any]:
    """Multinomial logistic regression on the digits, with a small ridge."""
    return _classifier(_dense(key, [64, 10], dtype), dtype)


def network(key: jax.Array, dtype: Any) -> tuple[Loss, Any]:
    """One hidden layer on the digits, with a small ridge."""
    return _classifier(_dense(key, [64, HIDDEN, 10], dtype), dtype)


def _classifier(start: Any, dtype: Any) -> tuple[Loss, Any]:
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, dtype), jnp.asarray(labels)

    def loss(layers: Any) -> jax.Array:
        fit = optax.softmax_cross_entropy_with_integer_labels(_apply(layers, x), y)
        return jnp.mean(fit) + 1e-4 * sum(jnp.sum(w**2) for w, _ in layers)

    return loss, start


def boundary_value(key: jax.Array, dtype: Any) -> tuple[Loss, Any]:
    """A physics-informed network: u'' = -pi^2 sin(pi x), u(0) = u(1) = 0."""
    points = jnp.linspace(0, 1, 64, dtype=dtype)

    def u(layers: Any, x: jax.Array) -> jax.Array:
        return x * (1 - x) * _apply(layers, x[None])[0]

    def loss(layers: Any) -> jax.Array:
        second = jax.vmap(jax.grad(jax.grad(u, argnums=1), argnums=1), (None, 0))
        rest = second(layers, points) + jnp.pi**2 * jnp.sin(jnp.pi * points)
        return jnp.mean(rest**2)

    return loss, _dense(key, [1, 20, 20, 1], dtype)


PROBLEMS = {
    "logistic regression": logistic,
    "network": network,
    "boundary value": boundary_value,
}

# A solver to be compiled: start, budget -> (final loss, iterations, work).
Run = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


def _ours(loss: Loss, method: str) -> Run:
    def run(x: Any, work: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        r = nlcg_optax.minimize(loss, x, method=method, tol=1e-30, max_evaluations=work)
        return r.fun, r.nit, r.evaluations

    return run


def _optax_lbfgs(loss: Loss) -> Run:
    def run(x: Any, work: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        tx = optax.lbfgs()
        value_and_grad = optax.value_and_grad_from_state(loss)

        def body(carry: Any) -> Any:
            x, state, k, spent = carry
            value, grad = value_and_grad(x, state=state)
            updates, state = tx.update(
                grad, state, x, value=value, grad=grad, value_fn=loss
            )
            trials = optax.tree.get(state, "num_linesearch_steps")
            spent += trials.astype(spent.dtype)
            return optax.apply_updates(x, updates), state, k + 1, spent

        zero = jnp.zeros([], jnp.int32)
        _, state, k, spent = jax.lax.while_loop(
            lambda c: (c[3] < work) & (c[2] < work),
            body,
            (x, tx.init(x), zero, zero + 1),
        )
        return optax.tree.get(state, "value"), k, spent

    return run


def _jaxopt_nlcg(loss: Loss) -> Run:
    import jaxopt

    def run(x: Any, work: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        solver = jaxopt.NonlinearCG(loss, tol=0.0, implicit_diff=False)

        def body(carry: Any) -> Any:
            x, state, k = carry
            return *solver.update(x, state), k + 1

        def goes_on(carry: Any) -> Any:
            return (carry[1].num_grad_eval < work) & (carry[2] < work)

        zero = jnp.zeros([], jnp.int32)
        _, state, k = jax.lax.while_loop(goes_on, body, (x, solver.init_state(x), zero))
        return state.value, k, state.num_grad_eval

    return run


def _scipy(
    loss: Loss, work: int, start: Any, target: float
) -> tuple[float, int, int, int | None]:
    flat, unravel = ravel_pytree(start)
    value_and_grad = jax.jit(jax.value_and_grad(lambda v: loss(unravel(v))))

    values: list[float] = []

    def fun(v: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = value_and_grad(jnp.asarray(v, flat.dtype))
        values.append(float(value))
        return float(value), np.asarray(grad, np.float64)

    r = scipy.optimize.minimize(
        fun,
        np.asarray(flat, np.float64),
        jac=True,
        method="L-BFGS-B",
        options={"maxfun": work, "maxiter": work, "ftol": 0.0, "gtol": 0.0},
    )
    reached = (i for i, value in enumerate(values, 1) if value <= target)
    return float(r.fun), int(r.nit), int(r.nfev), next(reached, None)


def _work_to(
    program: Callable[..., Any], start: Any, target: float, limit: int
) -> int | None:
    """The least multiple of `BUDGET_STEP` with a final loss at the target or below."""
    for work in range(BUDGET_STEP, limit + 1, BUDGET_STEP):
        if float(program(start, jnp.float32(work))[0]) <= target:
            return work
    return None


def compare(name: str, dtype: Any, config: Config) -> list[str]:
    """Rows of the table for one problem in one dtype."""
    loss, start = PROBLEMS[name](jax.random.key(config.seed), dtype)
    budget = jnp.float32(config.work)
    runs = {
        "nlcg_optax limited-memory": _ours(loss, "limited-memory"),
        "nlcg_optax hs+": _ours(loss, "hs+"),
        REFERENCE: _optax_lbfgs(loss),
        "jaxopt NonlinearCG": _jaxopt_nlcg(loss),
    }
    compiled: dict[str, Callable[..., Any]] = {}
    compiling: dict[str, list[float]] = {solver: [] for solver in runs}
    for _ in range(COMPILATIONS):
        for solver, run in runs.items():
            jax.clear_caches()
            begin = time.perf_counter()
            compiled[solver] = jax.jit(run).lower(start, budget).compile()
            compiling[solver].append(time.perf_counter() - begin)
    taken: dict[str, list[float]] = {solver: [] for solver in runs}
    results: dict[str, Any] = {}
    for _ in range(REPEATS):
        for solver, program in compiled.items():
            seconds, results[solver] = timed(program, start, budget)
            taken[solver].append(seconds)
    target = (1 + SLACK) * float(results[REFERENCE][0])

    def against_reference(times: dict[str, list[float]], unit: int | None) -> list[str]:
        """Ratios of times per unit, an entry of the results; None for whole times."""
        per = {s: 1.0 if unit is None else float(results[s][unit]) for s in runs}
        return [
            f"{median_ratio(times[s], times[REFERENCE]) * per[REFERENCE] / per[s]:.2f}"
            for s in runs
        ]

    ratios = zip(
        against_reference(taken, 1),
        against_reference(taken, 2),
        against_reference(compiling, None),
        strict=True,
    )
    title = f"{name}, {jnp.dtype(dtype).name}"
    rows = []
    for (solver, (value, nit, work)), ratio in zip(
        results.items(), ratios, strict=True
    ):
        reached = _work_to(compiled[solver], start, target, config.work)
        rows.append(
            f"| {title} | {solver} | {float(value):.3e} | {int(nit)} | "
            f"{float(work):.0f} | {reached or '–'} | {' | '.join(ratio)} |"
        )
    value, nit, work, reached = _scipy(loss, config.work, start, target)
    rows.append(
        f"| {title} | SciPy L-BFGS-B | {value:.3e} | {nit} | {work} | "
        f"{reached or '–'} | | | |"
    )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    module = "experiments.classical.real_work"
    config = tyro.cli(Config, prog=f"python -m {module}", args=arguments)
    with ending_with_a_message(module, arguments, again="start again with"):
        for problem in config.problems:
            look_up("problems", problem, PROBLEMS)
        with needing("experiments,classical"):  # before minutes of work
            for package in ("jaxopt", "optimistix"):
                importlib.import_module(package)
        jax.config.update("jax_enable_x64", True)
        # Compiling is timed: nothing may come from a cache on disk.
        jax.config.update("jax_enable_compilation_cache", False)
        lines = [
            f"| {' | '.join(HEADINGS)} |",
            f"|---|---|{'---:|' * (len(HEADINGS) - 2)}",
        ]
        for name in config.problems:
            for dtype in (jnp.float32, jnp.float64):
                lines += compare(name, dtype, config)
        lines += ["", *first_calls.table(config.processes), "", made_with()]
        text = "\n".join(lines)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text + "\n", encoding="utf-8")
        Console().print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
