"""What `minimize` reads anew at every call, and what it compiles once."""

import dataclasses
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import minimize
from nlcg_optax.minimization import program as programs
from nlcg_optax.minimization.tracing import evaluate, largest, largest_input, trace


@dataclasses.dataclass
class Fit:
    target: jax.Array

    def __call__(self, x):
        return jnp.sum((x - self.target) ** 2)

    def loss(self, x):
        return self(x)


def nested(data, scale):
    """Data within a nested jit, a scan and a function with a custom derivative."""
    inner = jax.jit(lambda x: scale * jnp.sum((x - data) ** 2))

    def fun(x):
        total, _ = jax.lax.scan(
            lambda s, d: (s + (x[0] - d) ** 2, None), jnp.zeros([], x.dtype), data
        )
        return inner(x) + total + jnp.sum(jax.nn.softplus(x) * data)

    return fun


def test_a_program_computes_what_the_function_computes():
    x = jnp.array([0.5, -1.0])
    one, two = nested(jnp.array([1.0, 2.0]), 3.0), nested(jnp.array([4.0, 5.0]), 6.0)
    first, second = trace(one, x), trace(two, x)
    assert first.key == second.key
    assert first.has_custom_rules
    for fun, values in ((one, first.values), (two, second.values)):
        for custom in (True, False):
            (value,) = evaluate(first.jaxpr, values, [x], custom=custom)
            np.testing.assert_allclose(value, fun(x), rtol=1e-6)
    grad = jax.grad(lambda v: evaluate(first.jaxpr, second.values, [v])[0])(x)
    np.testing.assert_allclose(grad, jax.grad(two)(x), rtol=1e-6)


def test_programs_that_differ_have_other_keys():
    x = jnp.array([0.5, -1.0])
    functions = [
        lambda v: jnp.sum(v**2),
        lambda v: jnp.sum(v**3),
        lambda v: jnp.sum(jnp.sin(v) ** 2),
        lambda v: jnp.max(v),
        lambda v: v[0] * v[0] + v[1] * v[1],
        lambda v: v[1] * v[0] + v[1] * v[1],
        lambda v: jax.lax.fori_loop(0, 2, lambda _, s: 2.0 * s, v[0]),
        lambda v: jax.lax.fori_loop(0, 2, lambda _, s: 3.0 * s, v[0]),
        lambda v: jnp.sum(jnp.take(v, jnp.array([0, 1]))),
    ]
    assert len({trace(fun, x).key for fun in functions}) == len(functions)


def test_a_third_call_of_either_of_two_jitted_functions_is_told_apart():
    first = jax.jit(lambda a, b: a - 2.0 * b)
    second = jax.jit(lambda a, b: b - 2.0 * a)

    def fun(x, third):
        calls = [f(x[0], x[1]) for f in (first, second, third)]
        return sum(
            weight * (call - target) ** 2
            for weight, call, target in zip((1, 1, 10), calls, (1, 1, 3), strict=True)
        )

    x = jnp.zeros(2)
    functions = [functools.partial(fun, third=third) for third in (first, second)]
    assert trace(functions[0], x).key != trace(functions[1], x).key
    for function in functions:
        result = minimize(function, x)
        np.testing.assert_allclose(result.fun, function(result.x), rtol=1e-5)
        assert jnp.max(jnp.abs(jax.grad(function)(result.x))) < 1e-3


def test_a_reducer_compiles_once_but_another_one_again():
    def total(weight):
        return trace(
            lambda x: jax.lax.reduce(x, 0.0, lambda a, b: a + weight * b, (0,)),
            jnp.ones(3),
        )

    assert total(1.0).key == total(1.0).key
    assert total(1.0).key != total(2.0).key


def test_the_size_of_a_problem_counts_what_it_is_given():
    data = jnp.ones([40, 30])
    closed = jax.make_jaxpr(lambda x: jnp.sum((data @ x) ** 2))(jnp.ones(30))
    given = jax.make_jaxpr(lambda a, x: jnp.sum((a @ x) ** 2))(data, jnp.ones(30))
    for traced in (closed, given):
        assert largest(traced.jaxpr) == 40
        assert largest_input(traced.jaxpr) == 1200


def test_everything_is_read_anew():
    old, new = np.array([1.0, 2.0], np.float32), np.array([5.0, 6.0], np.float32)
    module, in_place = Fit(old), old.copy()
    functions = [
        module,
        module.loss,
        lambda x: jnp.sum((x - in_place) ** 2),
        functools.partial(lambda fit, x: fit(x), module),
    ]
    for fun in functions:
        np.testing.assert_allclose(minimize(fun, jnp.zeros(2)).x, old, atol=1e-5)
    module.target, in_place[:] = new, new
    for fun in functions:
        np.testing.assert_allclose(minimize(fun, jnp.zeros(2)).x, new, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "softplus", "jit"])
def test_new_data_compile_nothing_and_old_data_are_released(kind, monkeypatch):
    made = []
    build = programs.Program

    def counted(*args):
        made.append(1)
        return build(*args)

    monkeypatch.setattr(programs, "Program", counted)
    monkeypatch.setattr(programs, "_programs", type(programs._programs)())

    def solve(center):
        data = jnp.full(2, center)
        bend = jax.nn.softplus if kind == "softplus" else jnp.abs

        def fun(x):
            return jnp.sum((x - data) ** 2) + 0 * jnp.sum(bend(x))

        x = minimize(jax.jit(fun) if kind == "jit" else fun, jnp.ones(2)).x
        return x, weakref.ref(data)

    for center in (3.0, 4.0, 5.0):
        x, data = solve(center)
        np.testing.assert_allclose(x, center, rtol=1e-5)
        gc.collect()
        assert data() is None
    assert len(made) == 1
    (program,) = programs._programs.values()
    assert program.run._cache_size() == 1  # one compilation


@pytest.mark.parametrize("as_array", [False, True])
def test_functions_with_derivatives_of_their_own_are_released(as_array):
    def solve(center):
        data = np.full(2, center, np.float32) if as_array else center

        @jax.custom_jvp
        def distance(x):
            return jnp.sum((x - data) ** 2)

        distance.defjvp(
            lambda x, x_dot: (distance(*x), 2 * jnp.vdot(x[0] - data, x_dot[0]))
        )
        x = minimize(distance, jnp.zeros(2)).x
        np.testing.assert_allclose(x, center, rtol=1e-5)
        return weakref.ref(distance)

    released = [solve(center) for center in (3.0, 4.0)]
    gc.collect()
    assert [distance() for distance in released] == [None, None]


def test_a_custom_derivative_on_an_explicit_mesh():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    split = jax.sharding.NamedSharding(mesh, jax.P("i"))
    result = minimize(
        lambda x: jnp.sum((x - 1) ** 2) + jnp.sum(jax.nn.relu(x)),
        jax.device_put(jnp.full(4, 3.0), split),
    )
    # 2 (x - 1) + 1 = 0
    np.testing.assert_allclose(result.x, 0.5, rtol=1e-6)
    assert result.x.sharding.spec == jax.P("i")


def test_derivatives_of_value_and_auxiliary_output(x64):
    def solved(a, **kwargs):
        def fun(x):
            return jnp.sum((x - a) ** 2) + a * jnp.sum(x), {"x": a * x[0], "a": 3 * a}

        return minimize(fun, jnp.zeros(2), has_aux=True, **kwargs)

    # The minimum lies at a / 2 and is 3/2 a².
    np.testing.assert_allclose(jax.grad(lambda a: solved(a).fun)(2.0), 6.0, rtol=1e-8)
    aux = jax.jacrev(lambda a: solved(a).aux)(2.0)
    np.testing.assert_allclose(aux["x"], 2.0, rtol=1e-8)
    np.testing.assert_allclose(aux["a"], 3.0, rtol=1e-8)
    inside = jax.jit(jax.grad(lambda a: solved(a).fun + solved(a).x[0]))
    np.testing.assert_allclose(inside(2.0), 6.5, rtol=1e-8)

    def failed(a):
        return minimize(lambda x: jnp.sum((x - a) ** 4), jnp.zeros(2), max_iterations=1)

    assert not bool(failed(2.0).success)
    assert np.isnan(jax.grad(lambda a: failed(a).fun)(2.0))
    assert np.isnan(jax.grad(lambda a: failed(a).x[0])(2.0))


def test_derivatives_through_a_function_with_a_custom_derivative(x64):
    def least(a):
        return minimize(
            lambda x: jnp.sum(jax.nn.softplus(a * x)) + jnp.sum(x**2), jnp.ones(2)
        ).fun

    difference = (least(1.5 + 1e-5) - least(1.5 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(least)(1.5), difference, rtol=1e-6)


def test_reverse_derivatives_of_a_function_without_forward_ones(x64):
    @jax.custom_vjp
    def square(x):
        return jnp.sum(x**2)

    # As in JAX's documentation: the forward pass calls the function itself.
    square.defvjp(lambda x: (square(x), x), lambda x, dot: (2 * x * dot,))

    def solution(a):
        scales = jnp.array([1.0, 3.0])
        return minimize(lambda x: square(scales * x - a), jnp.zeros(2)).x

    np.testing.assert_allclose(
        jax.jacrev(solution)(jnp.ones(2)), np.diag([1.0, 1 / 3]), atol=1e-8
    )


def test_numbers_of_python_in_args_may_decide_what_is_computed():
    def fun(x, n, squared, scale):
        terms = [(x - scale * k) ** (2 if squared else 4) for k in range(n)]
        return sum(terms)

    result = minimize(fun, 0.0, (3, True, 2.0))
    assert float(result.x) == pytest.approx(2.0, abs=1e-5)


@pytest.mark.slow  # under these checks JAX traces each operation anew
def test_nothing_leaks_from_a_trace(leak_checks):
    def solution(a):  # with a custom derivative, and terms that have none
        result = minimize(
            lambda x: jnp.sum((x - a) ** 2) + jnp.sum(jax.nn.softplus(a * x)),
            jnp.zeros(3),
        )
        return result.x, result.nit

    def with_tangent(a):
        return jax.jvp(solution, (a,), (a,), has_aux=True)

    batch = jax.eval_shape(jax.vmap(with_tangent), jnp.ones([2, 3]))
    assert [leaf.shape for leaf in batch] == [(2, 3), (2, 3), (2,)]
