"""Derivatives of minimizers, by the implicit function theorem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import betainc
from jax.sharding import AxisType

from nlcg_optax import minimize


def quadratic(x, a):
    return jnp.sum(jnp.arange(1.0, 4.0) * (x - a) ** 2) + jnp.sum(x**4)


def test_implicit_derivatives(x64):
    a = jnp.array([1.0, 2.0, 3.0])

    def solution(a):
        return minimize(quadratic, jnp.zeros(3), args=(a,), tol=1e-12).x

    x = solution(a)
    hessian = jax.hessian(quadratic)(x, a)
    mixed = jax.jacobian(jax.grad(quadratic), argnums=1)(x, a)
    expected = -jnp.linalg.solve(hessian, mixed)
    np.testing.assert_allclose(jax.jacrev(solution)(a), expected, atol=1e-8)
    np.testing.assert_allclose(jax.jacfwd(solution)(a), expected, atol=1e-8)

    def closed_over(a):
        return jnp.sum(minimize(lambda x: quadratic(x, a), jnp.zeros(3), tol=1e-12).x)

    np.testing.assert_allclose(jax.grad(closed_over)(a), expected.sum(0), atol=1e-8)


@pytest.mark.devices
def test_derivatives_of_a_minimizer_on_an_explicit_mesh():
    mesh = jax.make_mesh(
        (2,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2]
    )
    curvatures = np.arange(1.0, 5.0, dtype=np.float32)

    def solution(a, x0, c):
        return minimize(lambda x: jnp.sum(0.5 * c * x**2 - a * x), x0).x

    with jax.set_mesh(mesh):
        x0, c = (jax.device_put(x, jax.P("x")) for x in (np.zeros(4), curvatures))
        derivative = jax.jit(jax.jacfwd(solution))(2.0, x0.astype(c.dtype), c)
        total = jax.jit(jax.grad(lambda *args: jnp.sum(solution(*args))))
        reverse = total(2.0, x0.astype(c.dtype), c)
    # x = a / c: conjugate gradients end after four iterations, each within some
    # roundings of the largest of the four.
    np.testing.assert_allclose(derivative, 1 / curvatures, rtol=1e-5)
    np.testing.assert_allclose(reverse, np.sum(1 / curvatures), rtol=1e-5)


def test_a_failed_solve_has_no_derivatives_with_respect_to_its_start():
    def end(x0, most):
        return minimize(lambda x: jnp.sum((x - 1) ** 4), x0, max_iterations=most).fun

    start = jnp.zeros(2)
    assert np.isnan(jax.grad(end)(start, 1)).all()
    assert np.isnan(jax.jacfwd(end)(start, 1)).all()
    np.testing.assert_array_equal(jax.grad(end)(start, 100), 0)


def test_constants_need_no_derivatives():
    # `betainc` has none with respect to its first two arguments.
    def fun(x, a):
        return (betainc(2.0, 3.0, jax.nn.sigmoid(x)) - 0.3) ** 2 + (x - a) ** 2

    def nearest(a):
        return minimize(lambda x: fun(x, a), 0.1)

    a = 0.3
    x = nearest(a).x
    envelope = jax.grad(fun, argnums=1)(x, a)
    np.testing.assert_allclose(
        jax.grad(lambda a: nearest(a).fun)(a), envelope, rtol=1e-4
    )
    # Implicitly: -f_xa over f_xx.
    mixed = jax.grad(jax.grad(fun), argnums=1)(x, a) / jax.grad(jax.grad(fun))(x, a)
    found = jax.jit(jax.grad(lambda a: nearest(a).x))(a)
    np.testing.assert_allclose(found, -mixed, rtol=1e-3)


@pytest.mark.parametrize("unit", [1e-22, 1e-15, 1e-10, 1.0, 1e15, 1e30])
def test_derivatives_do_not_depend_on_the_units_of_the_objective(unit):
    a = jnp.array([1.0, 2.0])

    def solution(a, c):
        def fun(x):
            return c * (jnp.sum((x - a) ** 2) + jnp.sum(x) ** 2 / 2)

        return minimize(fun, jnp.zeros(2)).x

    expected = [[0.75, -0.25], [-0.25, 0.75]]
    for derivative in (jax.jacfwd, jax.jacrev):
        found = jax.jit(derivative(solution))(a, unit)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-12, 1e12, 1e15])
def test_derivatives_do_not_depend_on_the_units_of_the_parameters(unit):
    def solution(a):
        return minimize(lambda x: (x / unit - a) ** 2, 0.0).x / unit

    np.testing.assert_allclose(jax.grad(solution)(1.0), 1.0, rtol=1e-5)


def test_tangents_may_be_numbers_of_python():
    def solution(t):
        return minimize(lambda x: jnp.sum((x - t) ** 2), jnp.zeros(2)).x

    found, tangent = jax.jvp(solution, (1.2,), (1.0,))
    np.testing.assert_allclose(found, 1.2, rtol=1e-6)
    np.testing.assert_allclose(tangent, 1.0, rtol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_right_side_that_is_not_finite_gives_no_derivative(jitted):
    def solution(a):  # sqrt has an infinite slope at zero, and none below
        return minimize(lambda x: jnp.sum((x - jnp.sqrt(a)) ** 2), jnp.ones(2)).x

    def beyond(a):
        return jnp.sum(jnp.sqrt(minimize(lambda x: (x - a) ** 2, 0.0).x - 2.0))

    forward, reverse = jax.jacfwd(solution), jax.grad(beyond)
    if jitted:
        forward, reverse = jax.jit(forward), jax.jit(reverse)
    assert not np.isfinite(forward(0.0)).any()
    assert np.isnan(reverse(1.0))
    # Finite ones of the same functions: 1/2 a^(-1/2) at 4, and likewise at 6 - 2.
    np.testing.assert_allclose(forward(4.0), 0.25, rtol=1e-5)
    np.testing.assert_allclose(reverse(6.0), 0.25, rtol=1e-5)


def test_directions_without_curvature_do_not_magnify_rounding():
    rng = np.random.default_rng(0)
    # Five of ten parameters are determined, with singular values between 1 and 2.
    u, _, v = np.linalg.svd(rng.normal(size=(5, 10)), full_matrices=False)
    matrix = ((u * np.linspace(1, 2, 5)) @ v).astype(np.float32)

    def solution(a):
        return minimize(lambda x: jnp.sum((matrix @ x - a) ** 2), jnp.zeros(10)).x

    # The condition number of the Hessian, 4, times 10 units of rounding is 5e-6.
    found = jax.jit(jax.jacfwd(solution))(jnp.ones(5))
    np.testing.assert_allclose(found, np.linalg.pinv(matrix), atol=1e-5)
    found = jax.jit(jax.jacrev(lambda a: matrix @ solution(a)))(jnp.ones(5))
    np.testing.assert_allclose(found, np.eye(5), atol=1e-5)
    # Backwards, the parameters themselves are not determined.
    assert np.isnan(jax.grad(lambda a: solution(a)[0])(jnp.ones(5))).all()


def test_a_hessian_of_any_condition_is_solved_or_gives_no_derivative(x64):
    def relative_error(condition):
        weights = np.logspace(0, -np.log10(condition), 100)

        def solution(a):  # begins at its solution, zero
            return minimize(
                lambda x: jnp.sum(weights * x**2) / 2 - a * jnp.sum(x), jnp.zeros(100)
            ).x

        _, found = jax.jvp(solution, (0.0,), (1.0,))
        exact = 1 / weights
        return np.linalg.norm(found - exact) / np.linalg.norm(exact)

    # Ten units of rounding, 2e-15, times the condition number; and a residual of 1e-10.
    assert relative_error(1e8) < 1e-6
    assert np.isnan(relative_error(1e14))
