"""The first call of a solver in a new process, and a call with new data.

``python -m experiments.classical.first_calls SOLVER [FOLDER]`` measures one solver in
its own process and prints a line of JSON; with a folder, JAX keeps its compiled
programs there from one process to the next. `table` starts such processes. The fit has
ten parameters and fifty points, in float32; every call has a new closure over new data,
as in a script that fits one file after another.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PARAMETERS, POINTS = 10, 50
CALLS = 5  # with new data; the median counts
TOL = 1e-4  # of the peers' gradients
MODULE = "experiments.classical.first_calls"
HEADINGS = (
    "solver",
    "first call, s",
    "first call with programs from JAX's cache on disk, s",
    "call with new data, ms",
)

Objective = Callable[[Any], jax.Array]


def objective(seed: int) -> Objective:
    """A new closure over new data."""
    rng = np.random.default_rng(seed)
    times = np.linspace(-1.0, 1.0, POINTS, dtype=np.float32)
    features = jnp.asarray(np.cos(np.outer(times, np.arange(PARAMETERS))))
    data = jnp.asarray(np.tanh(3 * times) + 0.02 * rng.normal(size=POINTS))
    features, data = features.astype(jnp.float32), data.astype(jnp.float32)

    def fun(x: jax.Array) -> jax.Array:
        return jnp.sum((jnp.tanh(features @ x) - data) ** 2) + 1e-3 * jnp.sum(x**2)

    return fun


def _start() -> jax.Array:
    return jnp.full(PARAMETERS, 0.1, jnp.float32)


def _ours(fun: Objective) -> Any:
    import nlcg_optax

    return nlcg_optax.minimize(fun, _start()).x


def _optax_lbfgs(fun: Objective) -> Any:
    import optax

    tx, x = optax.lbfgs(), _start()
    value_and_grad = optax.value_and_grad_from_state(fun)

    def body(carry: Any) -> Any:
        x, state, k = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=fun)
        return optax.apply_updates(x, updates), state, k + 1

    def goes_on(carry: Any) -> jax.Array:
        _, state, k = carry
        grad = optax.tree.get(state, "grad")
        return (k == 0) | ((jnp.max(jnp.abs(grad)) > TOL) & (k < 500))

    return jax.lax.while_loop(goes_on, body, (x, tx.init(x), 0))[0]


def _optimistix_bfgs(fun: Objective) -> Any:
    import optimistix

    solver: Any = optimistix.BFGS(rtol=TOL, atol=TOL)
    return optimistix.minimise(lambda x, _: fun(x), solver, _start(), throw=False).value


def _jaxopt_lbfgs(fun: Objective) -> Any:
    import jaxopt

    return jaxopt.LBFGS(fun, tol=TOL, implicit_diff=False).run(_start()).params


def _scipy(fun: Objective) -> Any:
    import scipy.optimize

    value_and_grad = jax.jit(jax.value_and_grad(fun))

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = value_and_grad(jnp.asarray(x, jnp.float32))
        return float(value), np.asarray(grad, np.float64)

    return scipy.optimize.minimize(
        both, np.asarray(_start(), np.float64), jac=True, method="L-BFGS-B"
    ).x


SOLVERS: dict[str, Callable[[Objective], Any]] = {
    "nlcg_optax": _ours,
    "optax lbfgs": _optax_lbfgs,
    "optimistix BFGS": _optimistix_bfgs,
    "jaxopt LBFGS": _jaxopt_lbfgs,
    "SciPy L-BFGS-B": _scipy,
}


def measure(solver: str) -> dict[str, Any]:
    """Times one solver in this process, after its package is imported.

    Returns:
        ``first`` and ``again``, in seconds of processor time.
    """
    modules = {
        "jaxopt": "jaxopt",
        "optimistix": "optimistix",
        "SciPy": "scipy.optimize",
    }
    __import__(modules.get(solver.split()[0], solver.split()[0]))
    # Starts the backend, as any other computation would.
    jax.block_until_ready(jnp.sum(_start() + 1.0))
    solve, seconds = SOLVERS[solver], []
    for seed in range(CALLS + 1):
        fun = objective(seed)
        begin = time.process_time()
        jax.block_until_ready(solve(fun))
        seconds.append(time.process_time() - begin)
    return {"first": seconds[0], "again": statistics.median(seconds[1:])}


def _in_new_process(solver: str, *cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", MODULE, solver, *cache]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    times: dict[str, float] = json.loads(done.stdout)
    return times


def table(processes: int) -> list[str]:
    """Lines of Markdown: medians over new processes, which take turns."""
    alone: dict[str, list[dict[str, float]]] = {solver: [] for solver in SOLVERS}
    cached: dict[str, list[dict[str, float]]] = {solver: [] for solver in SOLVERS}
    with tempfile.TemporaryDirectory() as folder:
        for solver in SOLVERS:
            _in_new_process(solver, folder)  # fills the cache
        for _ in range(processes):
            for solver in SOLVERS:
                alone[solver].append(_in_new_process(solver))
                cached[solver].append(_in_new_process(solver, folder))

    def median(found: list[dict[str, float]], key: str) -> float:
        return statistics.median(times[key] for times in found)

    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---:|---:|---:|"]
    for solver in SOLVERS:
        first = median(alone[solver], "first"), median(cached[solver], "first")
        again = 1e3 * median(alone[solver], "again")
        lines.append(f"| {solver} | {first[0]:.2f} | {first[1]:.2f} | {again:.1f} |")
    return lines


if __name__ == "__main__":
    # Compiling is measured: without a folder nothing may come from a cache on disk.
    caches = len(sys.argv) > 2
    jax.config.update("jax_enable_compilation_cache", caches)
    if caches:
        jax.config.update("jax_compilation_cache_dir", sys.argv[2])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    print(json.dumps(measure(sys.argv[1])))
