"""When a tolerance of `minimize` is met: by a run, and by one that is resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import Status, minimize


@pytest.mark.parametrize("tol", [1.0, 1e-2, 1e-3])
def test_a_loose_tolerance_is_not_taken_for_rounding(tol):
    """A minimum of zero, approached slowly: each Newton step gains a third of the way.

    A gradient below tol³ of the largest one meets the tolerance. Rounding would be ten
    squares of 1.2e-7, 1.4e-13 of it.
    """

    def quartic(p):
        return jnp.sum(jnp.array([1.0, 10.0, 100.0]) * (p - 2) ** 4)

    loose = minimize(quartic, jnp.zeros(3), tol=tol)
    assert int(loose.status) == Status.CONVERGED
    assert int(loose.nit) > 0
    tight = minimize(quartic, jnp.zeros(3), state=loose.state)
    assert bool(tight.success)
    assert float(jnp.max(jnp.abs(tight.grad))) < 3200 * 1.4e-13
    unfinished = minimize(quartic, jnp.zeros(3), max_iterations=int(loose.nit))
    assert not bool(unfinished.success)
    met = minimize(
        quartic, jnp.zeros(3), state=unfinished.state, tol=tol, max_iterations=1
    )
    assert bool(met.success)
    assert int(met.ngev) == int(unfinished.ngev)


@pytest.mark.parametrize("c", [1e-9, 1e-2, 1e5, 1e9])
@pytest.mark.parametrize("tol_kind", ["absolute", "value"])
def test_a_tolerance_of_the_gradient_is_that_of_the_unscaled_one(tol_kind, c):
    def valley(x, c):
        return c * (1 + jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))

    # For the gradient of valley / c this is .1 or, for "value" and a valley of about c,
    # .1 (1 + c) / max(c, 1). Both are well above the rounding of float32.
    tol = 0.1 * (c if tol_kind == "absolute" else min(c, 1.0))
    start, kind = jnp.array([-1.2, 1.0]), {"tol": tol, "tol_kind": tol_kind}
    result = minimize(valley, start, args=(c,), **kind)
    assert result.nit > 5
    stopped = minimize(valley, start, args=(c,), max_iterations=2, **kind)
    again = minimize(valley, start, args=(c,), state=stopped.state, **kind)
    for met in (result, again):
        assert met.status == Status.CONVERGED
        least = tol if tol_kind == "absolute" else tol * (1 + float(met.fun))
        assert np.max(np.abs(jax.grad(valley)(met.x, c))) <= 1.01 * least
    last = int(result.nit) - 1
    before = minimize(valley, start, args=(c,), max_iterations=last, **kind)
    assert before.status == Status.MAX_ITERATIONS
    assert np.max(np.abs(before.grad)) > 0.99 * least


FAR_PLATEAUS = {
    "exp": (lambda x: 1 - jnp.exp(-(x**2)), 4.0),
    "tanh": (lambda x: jnp.tanh(x) ** 2, 9.0),
    "cosh": (lambda x: 1 - 1 / jnp.cosh(x), 15.0),
}


@pytest.mark.parametrize("name", FAR_PLATEAUS)
def test_no_plateau_above_the_start_is_a_solution(name, x64):
    fun, start = FAR_PLATEAUS[name]
    result = minimize(fun, start)
    assert result.fun <= fun(jnp.float64(start))
    assert result.success
    assert (
        abs(result.fun) < 1e-12
    )  # at zero, where the start is flat but not stationary


def test_a_promise_at_an_interrupted_run_is_not_yet_convergence():
    def badly_scaled(x):
        return (x[0] - 1e6) ** 2 + (x[1] - 2e-6) ** 2 + (x[0] * x[1] - 2) ** 2

    begun = minimize(badly_scaled, [1.0, 1.0], method="hs+", max_iterations=2)
    assert not begun.success
    result = minimize(badly_scaled, [1.0, 1.0], method="hs+", state=begun.state)
    assert result.success
    assert result.fun < 1e-9
    # Where a run has converged, it has to a looser tolerance at once.
    looser = minimize(
        badly_scaled, [1.0, 1.0], method="hs+", state=result.state, tol=0.1
    )
    assert looser.success
    assert looser.nit == result.nit
