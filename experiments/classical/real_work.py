"""Full-batch fitting and a differential equation: loss at equal work, time, compiling.

`python -m experiments.classical.real_work` compares `minimize` with `optax.lbfgs`,
`jaxopt.NonlinearCG` and SciPy's L-BFGS-B on logistic regression and a small network
on the digits, and on a physics-informed network for a boundary value problem. All
compiled solvers run as one program; times are taken alternately in one process.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import scipy.optimize
import tyro
from jax.flatten_util import ravel_pytree
from rich.console import Console
from sklearn.datasets import load_digits

import nlcg_optax

Loss = Callable[[Any], jax.Array]
HIDDEN = 32
REPEATS = 5
COMPILATIONS = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """Loss at equal work on three problems.

    Attributes:
        work: gradient-equivalents each solver may spend.
        seed: of the initial networks.
        output: Markdown file of the table.
        problems: which problems; all by default.
    """

    work: int = 300
    seed: int = 0
    output: Path = Path("runs/real_work.md")
    problems: tuple[str, ...] = ("logistic regression", "network", "boundary value")


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

# A compiled solver: start -> (final loss, iterations, work).
Run = Callable[[Any], tuple[jax.Array, jax.Array, jax.Array]]


def _ours(loss: Loss, work: int, method: str) -> Run:
    def run(x: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        r = nlcg_optax.minimize(
            loss, x, method=method, tol=1e-30, max_evaluations=float(work)
        )
        return r.fun, r.nit, r.evaluations

    return run


def _optax_lbfgs(loss: Loss, work: int) -> Run:
    def run(x: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
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


def _jaxopt_nlcg(loss: Loss, work: int) -> Run:
    def run(x: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
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


def _scipy(loss: Loss, work: int, start: Any) -> tuple[float, int, int]:
    flat, unravel = ravel_pytree(start)
    value_and_grad = jax.jit(jax.value_and_grad(lambda v: loss(unravel(v))))

    def fun(v: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = value_and_grad(jnp.asarray(v, flat.dtype))
        return float(value), np.asarray(grad, np.float64)

    r = scipy.optimize.minimize(
        fun,
        np.asarray(flat, np.float64),
        jac=True,
        method="L-BFGS-B",
        options={"maxfun": work, "maxiter": work, "ftol": 0.0, "gtol": 0.0},
    )
    return float(r.fun), int(r.nit), int(r.nfev)


def compare(name: str, dtype: Any, config: Config) -> list[str]:
    """Rows of the table for one problem in one dtype."""
    loss, start = PROBLEMS[name](jax.random.key(config.seed), dtype)
    runs = {
        "nlcg_optax limited-memory": _ours(loss, config.work, "limited-memory"),
        "nlcg_optax hs+": _ours(loss, config.work, "hs+"),
        "optax lbfgs": _optax_lbfgs(loss, config.work),
        "jaxopt NonlinearCG": _jaxopt_nlcg(loss, config.work),
    }
    compiled, compiling = {}, dict.fromkeys(runs, float("inf"))
    for _ in range(COMPILATIONS):
        for solver, run in runs.items():
            jax.clear_caches()
            begin = time.perf_counter()
            compiled[solver] = jax.jit(run).lower(start).compile()
            seconds = time.perf_counter() - begin
            compiling[solver] = min(compiling[solver], seconds)
    taken: dict[str, list[float]] = {solver: [] for solver in runs}
    results: dict[str, Any] = {}
    for _ in range(REPEATS):
        for solver, program in compiled.items():
            begin = time.perf_counter()
            results[solver] = jax.block_until_ready(program(start))
            taken[solver].append(time.perf_counter() - begin)
    reference = compiling["optax lbfgs"]
    per_iteration = {
        solver: min(taken[solver]) / max(int(results[solver][1]), 1) for solver in runs
    }
    per_work = {
        solver: min(taken[solver]) / float(results[solver][2]) for solver in runs
    }
    title = f"{name}, {jnp.dtype(dtype).name}"
    rows = []
    for solver, (value, nit, work) in results.items():
        rows.append(
            f"| {title} | {solver} | {float(value):.3e} | {int(nit)} | "
            f"{float(work):.0f} | "
            f"{per_iteration[solver] / per_iteration['optax lbfgs']:.2f} | "
            f"{per_work[solver] / per_work['optax lbfgs']:.2f} | "
            f"{compiling[solver] / reference:.2f} |"
        )
    value, nit, work = _scipy(loss, config.work, start)
    rows.append(f"| {title} | SciPy L-BFGS-B | {value:.3e} | {nit} | {work} | | | |")
    return rows


def main() -> None:
    """Command line."""
    config = tyro.cli(Config, description=__doc__)
    unknown = set(config.problems) - set(PROBLEMS)
    if unknown:
        raise SystemExit(
            f"problems: unknown {sorted(unknown)}, allowed {sorted(PROBLEMS)}"
        )
    jax.config.update("jax_enable_x64", True)
    # Compiling is timed: nothing may come from a cache on disk.
    jax.config.update("jax_enable_compilation_cache", False)
    lines = [
        "| problem | solver | loss | iterations | work | time per iteration against "
        "optax lbfgs | time per work | compile time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in config.problems:
        for dtype in (jnp.float32, jnp.float64):
            lines += compare(name, dtype, config)
    text = "\n".join(lines)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(text + "\n")
    Console().print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
