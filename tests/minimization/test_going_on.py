"""`minimize`: its limits, runs that are resumed, and continuation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import Status, minimize
from nlcg_optax.minimization.convergence import Sizes

START = np.array([-1.2, 1.0])  # float64 under x64, else float32


def rosenbrock(x, scale=100.0):
    return jnp.sum((1 - x[::2]) ** 2 + scale * (x[1::2] - x[::2] ** 2) ** 2)


def test_limits_and_going_on_give_the_uninterrupted_run(x64):
    whole = minimize(rosenbrock, START, tol=1e-9)
    part = minimize(rosenbrock, START, tol=1e-9, max_iterations=7)
    assert int(part.status) == Status.MAX_ITERATIONS
    assert int(part.nit) == 7
    assert part.fun < rosenbrock(START)
    rest = minimize(rosenbrock, START, tol=1e-9, state=part.state)
    np.testing.assert_array_equal(rest.x, whole.x)
    assert int(rest.ngev) == int(whole.ngev)
    short = minimize(rosenbrock, START, max_evaluations=5.0)
    assert int(short.status) == Status.MAX_EVALUATIONS
    assert 5.0 <= float(short.evaluations) < 6.01
    tighter = minimize(
        rosenbrock, START, tol=1e-12, state=minimize(rosenbrock, START, tol=1e-2).state
    )
    assert bool(tighter.success)
    assert float(jnp.max(jnp.abs(tighter.grad))) <= 1e-12


@pytest.mark.parametrize("limits", [{"max_iterations": 2}, {}])
def test_a_state_of_another_objective_is_no_success(limits):
    def fun(x, a):
        return jnp.sum((x - a) ** 2) + jnp.sum((x[1:] - x[:-1] ** 2) ** 2)

    run = functools.partial(minimize, fun, jnp.zeros(3))
    state = run(args=(3.0,), **limits).state
    other = run(args=(5.0,), state=state)
    assert int(other.status) == Status.OTHER_OBJECTIVE
    assert not bool(other.success)
    assert np.isnan(jax.grad(lambda a: run(args=(a,), state=state).fun)(5.0))
    # With its own objective the state goes on.
    right = run(args=(3.0,), state=other.state)
    assert bool(right.success)
    np.testing.assert_allclose(right.fun, run(args=(3.0,)).fun, rtol=1e-6)


@pytest.mark.parametrize("method", ["limited-memory", "hs+"])
def test_continuation_onto_a_changed_objective(x64, method):
    weights = jnp.logspace(0, 3, 8)

    def fun(x, a):
        return jnp.sum(weights * (x - a) ** 2) + jnp.sum((x - a) ** 4)

    run = functools.partial(minimize, fun, jnp.zeros(8), method=method, tol=1e-8)
    state, work = run(args=(0.0,), max_iterations=1).state, {"memory": 0, "point": 0}
    x = jnp.zeros(8)
    for a in (1.0, 1.1, 1.2, 1.3):
        result = run(args=(a,), state=state, new_objective=True)
        assert bool(result.success)
        np.testing.assert_allclose(result.x, a, atol=1e-8)
        np.testing.assert_allclose(result.fun, fun(result.x, a), atol=1e-15)
        # It began at the point that the run before had come to, and counts anew.
        start_value = Sizes(*result.state.sizes).start_value
        np.testing.assert_allclose(start_value, fun(x, a), rtol=1e-12)
        cold = minimize(fun, x, args=(a,), method=method, tol=1e-8)
        state, x = result.state, result.x
        if a > 1.0:
            work["memory"] += float(result.evaluations)
            work["point"] += float(cold.evaluations)
    # The secant pairs know the curvature already; a previous direction is no gain.
    if method == "limited-memory":
        assert work["memory"] < 0.5 * work["point"]


def test_continuation_of_a_scaled_objective_keeps_the_secant_pairs():
    weights = jnp.logspace(0, 3, 8)

    def fun(x, a, unit):
        return unit * (jnp.sum(weights * (x - a) ** 2) + jnp.sum((x - a) ** 4))

    work = []
    for unit in (1.0, 1e8):
        first = minimize(fun, jnp.zeros(8), (1.0, unit))
        state = first.state
        assert (state.scale == 1) == (unit == 1)
        for a in (1.1, 1.10001):  # a new scale is needed, and none
            result = minimize(
                fun, jnp.zeros(8), (a, unit), state=state, new_objective=True
            )
            assert bool(result.success)
            np.testing.assert_allclose(result.x, a, rtol=1e-5)
            work.append(float(result.evaluations / first.evaluations))
    assert max(work) < 0.5


def test_limits_hold_in_second_looks_too():
    def fun(x):  # Maratos' function: a steep curved wall
        wall = x[0] ** 2 + x[1] ** 2 - 1
        return 2 * wall - x[0] + 1e6 * wall**2

    start = jnp.array([1.1, 0.1])
    whole = minimize(fun, start)
    for most in np.linspace(1, int(whole.nit), 12).astype(int):
        assert minimize(fun, start, max_iterations=int(most)).nit <= most


def test_a_resumed_run_names_the_limit_that_it_has_now():
    start = START.astype(np.float32)
    state = minimize(rosenbrock, start, max_evaluations=12).state
    again = minimize(
        rosenbrock, start, state=state, max_iterations=2, max_evaluations=1e4
    )
    assert int(again.status) == Status.MAX_ITERATIONS


def test_other_limits_cost_no_compilation(x64):
    traced = []

    def fun(x):
        traced.append(1)
        return rosenbrock(x)

    loose = minimize(fun, START, tol=1e-2)
    before = len(traced)
    tight = minimize(fun, START, tol=1e-8, max_iterations=500, patience=99)
    assert len(traced) <= before + 1  # at most to see what type it returns
    assert int(tight.nit) > int(loose.nit)
    # In a larger program limits are part of it, to the same effect.
    stopped = minimize(fun, START, tol=1e-8, max_iterations=3)
    inside = jax.jit(lambda x: minimize(fun, x, tol=1e-8, max_iterations=3))(START)
    assert (int(inside.nit), int(inside.status)) == (3, Status.MAX_ITERATIONS)
    np.testing.assert_allclose(inside.x, stopped.x, rtol=1e-9)
