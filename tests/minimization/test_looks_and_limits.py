"""`minimize`: where a limit, a resumed run or a callback meets the second look."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import Status, minimize
from tests.minimization.test_second_look import growth

T = np.linspace(77.0, 760.0, 14)
NOISE = 0.1 * np.random.default_rng(0).normal(size=14)
DATA = (
    T.astype(np.float32),
    (239.0 * (1 - np.exp(-5.5e-4 * T)) + NOISE).astype(np.float32),
)
START = np.array([500.0, 1e-4], np.float32)


def run(**kwargs):
    return minimize(growth, START, args=DATA, **kwargs)


@pytest.fixture(scope="module")
def whole():
    """Its end at 0.08 is a minimum; without a second look it would end at 20.8."""
    result = run()
    assert bool(result.success)
    assert float(result.fun) < 0.1
    return result


@pytest.mark.parametrize("limit", [3, 4, 5])
def test_a_run_that_a_limit_cuts_before_its_second_look_is_not_solved(whole, limit):
    """At 5 it has converged but for the look; at 3 and 4 one step promises little."""
    part = run(max_iterations=limit)
    assert (int(part.status), int(part.nit)) == (Status.MAX_ITERATIONS, limit)
    rest = run(state=part.state)
    assert bool(rest.success)
    np.testing.assert_allclose(rest.fun, whole.fun, rtol=1e-3)


def test_a_second_look_that_is_cut_short_is_no_success(whole):
    for limit in range(1, 60):
        part = run(max_evaluations=limit)
        if part.success:
            np.testing.assert_allclose(part.fun, whole.fun, rtol=1e-3)


def test_iteration_by_iteration_ends_where_the_whole_run_ends(whole):
    result, limit = run(max_iterations=1), 1
    while not result.success:
        limit += 1
        assert limit <= 100
        result = run(state=result.state, max_iterations=limit)
    np.testing.assert_allclose(result.fun, whole.fun, rtol=1e-3)


def test_a_callback_is_told_once_per_iteration(whole):
    seen = []
    run(callback=lambda progress: seen.append(int(progress.nit)))
    assert seen == list(range(int(whole.nit) + 1))


def test_a_limit_holds_for_a_run_that_had_converged(x64):
    def rosenbrock(x):
        return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)

    start = [-1.2, 1.0, 0.5, 0.3]
    loose = minimize(rosenbrock, start, tol=1e-2)
    assert bool(loose.success)
    cut = minimize(rosenbrock, start, tol=1e-8, state=loose.state, max_iterations=3)
    assert int(cut.status) == Status.MAX_ITERATIONS
    assert int(cut.nit) == int(loose.nit)


def test_the_best_point_survives_another_scale_of_the_objective():
    result = minimize(lambda x: 1e20 * jnp.sum(x**2), jnp.ones(2), max_evaluations=1)
    assert int(result.status) == Status.MAX_EVALUATIONS
    np.testing.assert_allclose(result.fun, 2e20, rtol=1e-6)
    np.testing.assert_allclose(result.grad, 2e20, rtol=1e-6)
