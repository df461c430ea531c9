"""Our methods and their peers by name, each called through its public interface.

Every solver takes the counter and the start, stops at max|g| <= tol (1 + |f|) as far as
its interface allows, and returns its point.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.optimize
import jaxopt
import numpy as np
import optax
import optimistix
import pycgdescent
import scipy.optimize

import nlcg_optax
from experiments.classical import counting
from experiments.classical.counting import Counter

TOL = 1e-6  # in float64; in float32 every peer runs as long as it finds lower points
MAX_ITERATIONS = 100_000

Solver = Callable[[Counter, np.ndarray], np.ndarray]


def _is_small(tol: float, value: Any, grad: Any) -> Any:
    return jnp.max(jnp.abs(grad)) <= tol * (1 + jnp.abs(value))


def _ours(method: str, tol: float) -> Solver:
    kind: dict[str, Any] = {"tol": tol, "tol_kind": "value"} if tol else {}

    def solve(counter: Counter, x0: np.ndarray) -> np.ndarray:
        result = nlcg_optax.minimize(
            counting.counted,
            counting.use(counter, x0),
            method=method,
            **kind,
            max_iterations=MAX_ITERATIONS,
            max_evaluations=counter.max_work,
        )
        counter.says_success = bool(result.success)
        return np.asarray(result.x)[: x0.size]

    return solve


def _compiled(run: Callable[[jax.Array], jax.Array]) -> Solver:
    compiled = jax.jit(run)

    def solve(counter: Counter, x0: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(counting.use(counter, x0)))[: x0.size]

    return solve


def _optax_lbfgs(x0: jax.Array, tol: float) -> jax.Array:
    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(counting.counted)

    def body(carry: Any) -> Any:
        x, state, _, _ = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = tx.update(
            grad, state, x, value=value, grad=grad, value_fn=counting.counted
        )
        x = optax.apply_updates(x, updates)
        value = optax.tree.get(state, "value")
        grad = optax.tree.get(state, "grad")
        return x, state, _is_small(tol, value, grad), jnp.all(updates == 0)

    stop = jnp.array(False)
    start = (x0, tx.init(x0), stop, stop)
    return jax.lax.while_loop(lambda c: ~(c[2] | c[3]), body, start)[0]


def _jaxopt_nlcg(linesearch: str, tol: float) -> Callable[[jax.Array], jax.Array]:
    def run(x0: jax.Array) -> jax.Array:
        solver = jaxopt.NonlinearCG(
            counting.counted,
            method="polak-ribiere",
            linesearch=linesearch,
            tol=0.0,
            implicit_diff=False,
        )

        def body(carry: Any) -> Any:
            x, state, k = carry
            x, state = solver.update(x, state)
            return x, state, k + 1

        def goes_on(carry: Any) -> Any:
            _, state, k = carry
            return ~_is_small(tol, state.value, state.grad) & (k < MAX_ITERATIONS)

        return jax.lax.while_loop(goes_on, body, (x0, solver.init_state(x0), 0))[0]

    return run


def _jax_scipy(x0: jax.Array) -> jax.Array:
    options = {"gtol": 0.0, "maxiter": MAX_ITERATIONS}
    return jax.scipy.optimize.minimize(
        counting.counted, x0, method="BFGS", options=options
    ).x


def _optimistix(x0: jax.Array, solver_class: Any, tol: float) -> jax.Array:
    # The smallest tolerance, so that only the loop below stops it.
    solver: Any = solver_class(rtol=0.0, atol=0.0)

    def fn(x: jax.Array, args: Any) -> tuple[jax.Array, None]:
        del args
        return counting.counted(x), None

    scalar = jax.ShapeDtypeStruct((), x0.dtype)
    state = solver.init(fn, x0, None, {}, scalar, None, frozenset())
    dynamic, static = jax.tree.flatten(state)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in dynamic]
    fixed = [None if a else leaf for leaf, a in zip(dynamic, is_array, strict=True)]

    def pack(state: Any) -> list[Any]:
        leaves = jax.tree.leaves(state)
        return [leaf for leaf, a in zip(leaves, is_array, strict=True) if a]

    def unpack(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        return jax.tree.unflatten(
            static,
            [
                next(rest) if a else leaf
                for leaf, a in zip(fixed, is_array, strict=True)
            ],
        )

    def body(carry: Any) -> Any:
        y, arrays, k = carry
        y, state, _ = solver.step(fn, y, None, {}, unpack(arrays), frozenset())
        return y, pack(state), k + 1

    def goes_on(carry: Any) -> Any:
        _, arrays, k = carry
        info = unpack(arrays).f_info
        return (~_is_small(tol, info.f, info.grad) | (k == 0)) & (k < MAX_ITERATIONS)

    return jax.lax.while_loop(goes_on, body, (x0, pack(state), 0))[0]


def _scipy(method: str, tol: float) -> Solver:
    def solve(counter: Counter, x0: np.ndarray) -> np.ndarray:
        seen: dict[bytes, tuple[float, np.ndarray]] = {}

        def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
            out = counter.value_and_grad(x)
            seen.clear()
            seen[x.tobytes()] = out
            return out

        def callback(intermediate_result: Any) -> None:
            known = seen.get(np.asarray(intermediate_result.x).tobytes())
            if known is None:
                known = counter.uncounted(intermediate_result.x)
            if _is_small(tol, *known):
                raise StopIteration

        options: dict[str, Any] = {"maxiter": MAX_ITERATIONS, "gtol": 0.0}
        if method == "L-BFGS-B":
            options |= {"ftol": 0.0, "maxfun": MAX_ITERATIONS}
        result = scipy.optimize.minimize(
            fun, x0, jac=True, method=method, callback=callback, options=options
        )
        return np.asarray(result.x)

    return solve


def _cg_descent(**options: Any) -> Solver:
    def solve(counter: Counter, x0: np.ndarray) -> np.ndarray:
        def jac(g: np.ndarray, x: np.ndarray) -> None:
            g[...] = counter.value_and_grad(x)[1]

        def funjac(g: np.ndarray, x: np.ndarray) -> float:
            value, grad = counter.value_and_grad(x)
            g[...] = grad
            return value

        result = pycgdescent.minimize(
            counter.value,
            x0.copy(),
            jac=jac,
            funjac=funjac,
            tol=TOL,
            # StopRule 0 is max|g| <= tol (1 + |f|).
            options=pycgdescent.OptimizeOptions(StopRule=0, **options),
        )
        return np.asarray(result.x)

    return solve


@functools.cache
def solvers(tol: float = TOL) -> dict[str, Solver]:
    """All solvers by name.

    Args:
        tol: tolerance; with 0 our methods stop by their defaults, the others never.
    """
    bind = functools.partial
    return {
        "nlcg_optax limited-memory": _ours("limited-memory", tol),
        "nlcg_optax hs+": _ours("hs+", tol),
        "nlcg_optax hz": _ours("hz", tol),
        "CG_DESCENT default": _cg_descent(),
        "CG_DESCENT L-BFGS": _cg_descent(LBFGS=1),
        "CG_DESCENT memory 0": _cg_descent(memory=0),
        "optax lbfgs": _compiled(bind(_optax_lbfgs, tol=tol)),
        "SciPy L-BFGS-B": _scipy("L-BFGS-B", tol),
        "SciPy CG": _scipy("CG", tol),
        "jax.scipy BFGS": _compiled(_jax_scipy),
        "optimistix BFGS": _compiled(
            bind(_optimistix, solver_class=optimistix.BFGS, tol=tol)
        ),
        "optimistix NonlinearCG": _compiled(
            bind(_optimistix, solver_class=optimistix.NonlinearCG, tol=tol)
        ),
        "jaxopt NonlinearCG zoom": _compiled(_jaxopt_nlcg("zoom", tol)),
        "jaxopt NonlinearCG Hager-Zhang": _compiled(_jaxopt_nlcg("hager-zhang", tol)),
    }
