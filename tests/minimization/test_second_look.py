"""The second look of `minimize`: descents that other parameters, or a wall, hide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import Status, minimize
from nlcg_optax.minimization.convergence import Limits
from nlcg_optax.minimization.second_look import second_look
from nlcg_optax.minimization.state import NEIGHBOR, Iterations
from nlcg_optax.minimization.step_taken import take_step


def logistic(features, signs, b):
    return jnp.mean(jnp.logaddexp(0.0, -signs * (features @ b)))


def growth(p, t, y):
    return jnp.sum((p[0] * (1 - jnp.exp(-p[1] * t)) - y) ** 2)


@pytest.mark.parametrize("method", ["limited-memory", "hs+"])
def test_parameters_of_very_different_sizes_are_moved_together(method):
    """Where one of them is a million times the other, float32 finds the valley."""
    t = np.linspace(77.0, 760.0, 14)
    noise = 0.1 * np.random.default_rng(0).normal(size=14)
    y = 239.0 * (1 - np.exp(-5.5e-4 * t)) + noise
    p = np.array([239.0, 5.5e-4])
    for _ in range(30):  # Gauss-Newton in float64
        decay = np.exp(-p[1] * t)
        jacobian = np.stack([1 - decay, p[0] * t * decay], axis=1)
        p -= np.linalg.lstsq(jacobian, p[0] * (1 - decay) - y, rcond=None)[0]
    start, data = np.array([500.0, 1e-4], np.float32), (t, y)
    data = tuple(x.astype(np.float32) for x in data)
    result = minimize(growth, start, args=data, method=method)
    assert bool(result.success)
    # The rounding of p and t moves the model by 2 of its units, eps * 80, at 14 points
    # with residuals of .1: relative changes of f by 2 * 2 * 80 * eps / 0.1 at most.
    rounding = 3200 * np.finfo(np.float32).eps
    least = np.sum((p[0] * (1 - np.exp(-p[1] * t)) - y) ** 2)
    found = np.asarray(result.x, np.float64)
    left = np.sum((found[0] * (1 - np.exp(-found[1] * t)) - y) ** 2) - least
    assert left <= 100 * rounding * least


def test_a_valley_behind_the_rounding_of_a_wall_is_followed():
    """Maratos' function: around a circle, whose wall is a million times as steep.

    On the circle the rounding of x makes a gradient of 4e6 eps = .5 across it, as large
    as the slope of 1 along it.
    """

    def maratos(x):
        return x[0] + 1e6 * (x[0] ** 2 + x[1] ** 2 - 1) ** 2

    result = minimize(maratos, jnp.array([1.1, 0.1]))
    assert bool(result.success)
    # The minimum is -1 to within 1e6 / (4e6)² = 6e-8.
    np.testing.assert_allclose(result.fun, -1.0, atol=100 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("dtype", "units"),
    [(np.float32, (1, 1e3, 1e-3, 1)), (np.float64, (1, 1e5, 1e-5, 1))],
)
def test_features_in_different_units_are_all_used(x64, dtype, units):
    rng = np.random.default_rng(0)
    standard = rng.standard_normal((6, 200, 4))
    weights = rng.standard_normal((6, 4, 1))
    chances = 1 / (1 + np.exp(-(standard @ weights)[..., 0]))
    signs = np.where(rng.random((6, 200)) < chances, 1.0, -1.0)
    features = (standard * units).astype(dtype)
    solve = jax.vmap(
        lambda *data: minimize(functools.partial(logistic, *data), np.zeros(4, dtype))
    )
    result = jax.jit(solve)(features, signs.astype(dtype))
    assert np.all(result.success)
    for x, s, found in zip(standard, signs, np.asarray(result.fun), strict=True):
        b = np.zeros(4)  # Newton's method in NumPy, in standard units
        for _ in range(30):
            p = 1 / (1 + np.exp(s * (x @ b)))
            hessian = (x.T * (p * (1 - p))) @ x
            b += np.linalg.solve(hessian, x.T @ (s * p))
        least = np.mean(np.logaddexp(0, -s * (x @ b)))
        assert found - least <= 100 * np.finfo(np.float32).eps * least


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parameters_that_have_hardly_moved_are_not_forgotten(x64, dtype):
    unit = 1e4 if dtype == np.float32 else 1e8

    def fun(x):
        return jnp.cosh(x[0] / unit - 3) + jnp.cosh(x[1] * unit - 2)

    result = minimize(fun, np.zeros(2, dtype))
    assert bool(result.success)
    np.testing.assert_allclose(result.fun, 2.0, rtol=1e-6)
    np.testing.assert_allclose(result.x, [3 * unit, 2 / unit], rtol=2e-3)


def test_a_line_over_years_is_the_least_squares_line():
    years = 1970 + np.arange(50)
    noise = np.random.default_rng(0).standard_normal((6, 50))
    y = (2 + 0.03 * years + 0.5 * noise).astype(np.float32)
    t = years.astype(np.float32)

    def error(x, y):
        return jnp.mean((x[0] + x[1] * t - y) ** 2)

    solve = jax.vmap(lambda y: minimize(error, np.zeros(2, np.float32), args=(y,)))
    result = jax.jit(solve)(y)
    assert np.all(result.success)
    centered = np.stack([np.ones(50), years - years.mean()], axis=1)
    least = np.linalg.lstsq(centered, y.T.astype(float), rcond=None)[1] / 50
    assert np.max(result.fun / least - 1) <= 100 * np.finfo(np.float32).eps


def test_a_plateau_that_still_descends_is_no_minimum():
    """Michaelis-Menten in SI units: far above the data the curve is a line.

    There f is 1e13 times its least value, and falls by 1e-3 of itself at first where
    both parameters fall by all of themselves.
    """
    x = np.linspace(1e-6, 1e-4, 30, dtype=np.float32)
    y = np.float32(5e-3) * x / (np.float32(2e-5) + x)

    def misfit(p, x, y):
        return jnp.mean((p[0] * x / (p[1] + x) - y) ** 2)

    starts = jnp.array([[5.0, 2.0], [2.0, 2.0], [6.0, 1.0], [8.0, 1.0]])
    result = jax.vmap(lambda start: minimize(misfit, start, args=(x, y)))(starts)
    assert bool(jnp.all(result.success))
    expected = np.tile([5e-3, 2e-5], (4, 1))
    np.testing.assert_allclose(result.x, expected, rtol=1e-5)


def test_a_valley_of_three_parameters_is_followed_in_units_of_sizes():
    """The Antoine equation, log10 p = A - B / (C + t), for boiling water.

    The eigenvalues of its Hessian are 30, 6e-4 and 1e-8. Beside the steepest wall
    nothing is left of the gradient in units of slopes.
    """
    t = np.linspace(7.0, 97.0, 15)
    noise = 1e-3 * np.random.default_rng(0).standard_normal((8, 15))
    y = 8.07 - 1730.0 / (233.4 + t) + noise

    def misfit(p, t, y):
        return jnp.sum((p[0] - p[1] / (t + p[2]) - y) ** 2)

    start, t32 = np.array([8.0, 1500.0, 200.0], np.float32), t.astype(np.float32)
    solve = jax.vmap(lambda y: minimize(misfit, start, args=(t32, y)))
    result = jax.jit(solve)(y.astype(np.float32))
    assert np.all(result.success)
    eps = float(np.finfo(np.float32).eps)
    for target, found in zip(y, np.asarray(result.x, np.float64), strict=True):
        p = np.array([8.07, 1730.0, 233.4])
        for _ in range(30):  # Gauss-Newton
            jacobian = np.stack([np.ones(15), -1 / (t + p[2]), p[1] / (t + p[2]) ** 2])
            errors = p[0] - p[1] / (t + p[2]) - target
            p -= np.linalg.lstsq(jacobian.T, errors, rcond=None)[0]
        least = misfit(p, t, target)
        # The two terms of an error are about 8, so it is rounded by up to 16 eps.
        rounding = 2 * np.sqrt(15 * least) * 16 * eps
        assert misfit(found, t, target) - least <= 100 * rounding


def test_the_last_look_is_orthogonal_to_the_change_of_the_gradient_at_the_neighbor():
    def wall(x):
        return x[0] + 1e6 * (x[0] ** 2 + x[1] ** 2 - 1) ** 2

    state = minimize(wall, jnp.array([1.1, 0.1])).state
    limits = Limits("decrease", 1e-6, 1000, 1000.0, 100)
    x = jnp.array([0.6, 0.8], jnp.float32)

    def padded(values):
        return jnp.zeros_like(state.current).at[:2].set(jnp.array(values, jnp.float32))

    best = state.best._replace(value=jnp.float32(0.6), grad=padded([3.0, 2.0]))
    # One rounding lower, and much flatter: the next look compares the two all the same.
    lower = state.candidate._replace(
        value=best.value * (1 - np.finfo(np.float32).eps),
        grad=padded([1.0, 2.5]),
        grad_max=best.grad_max / 4,
    )
    state = state._replace(
        best=best,
        best_params=padded(x),
        candidate=lower,
        iterations=jnp.stack(Iterations(*state.iterations)._replace(look=NEIGHBOR)),
    )
    taken = take_step(limits, state)
    assert float(taken.best.value) == float(best.value)
    state = state._replace(best=taken.best, best_params=taken.best_params)
    after = second_look(limits, state, jnp.int32(3))
    assert int(after.status) == Status.RUNNING
    # d_i = -x_i r_i and z_i = x_i (g'_i - g_i).
    r = np.asarray(after.updates)[:2] / np.asarray(x)
    z = np.asarray(x) * np.array([-2.0, 0.5])
    assert abs(r @ z) < 1e-6 * np.linalg.norm(r) * np.linalg.norm(z)
    assert np.linalg.norm(r) > 0.1
