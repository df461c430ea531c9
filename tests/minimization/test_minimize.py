"""`minimize`: results, statuses, batches."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest

from nlcg_optax import (
    Status,
    limited_memory_method,
    minimize,
    nlcg_method,
    scale_by_hager_zhang_linesearch,
    scale_by_nlcg,
)
from nlcg_optax.dtypes import with_standard_promotion
from nlcg_optax.linesearch.wolfe_search import WolfeRules
from nlcg_optax.minimization import program as programs
from nlcg_optax.minimization.coordinates import MULTIPLE
from nlcg_optax.minimization.methods import Method

START = np.array([-1.2, 1.0])  # float64 under x64, else float32


def rosenbrock(x, scale=100.0):
    return jnp.sum((1 - x[::2]) ** 2 + scale * (x[1::2] - x[::2] ** 2) ** 2)


def quadratic(x, a):
    return jnp.sum(jnp.arange(1.0, 4.0) * (x - a) ** 2) + jnp.sum(x**4)


@pytest.mark.parametrize("method", ["limited-memory", "hs+", "hz", "dk"])
def test_every_method_finds_the_minimum(x64, method):
    result = minimize(rosenbrock, START, method=method, tol=1e-9)
    assert bool(result.success), result.message
    np.testing.assert_allclose(result.x, 1.0, atol=1e-7)
    np.testing.assert_allclose(result.fun, rosenbrock(result.x), rtol=1e-9)
    np.testing.assert_allclose(result.grad, jax.grad(rosenbrock)(result.x), atol=1e-12)
    assert 10 < int(result.nit) < 400
    assert int(result.ngev) > int(result.nit)


def test_counters_are_what_was_measured(x64):
    calls = {"value": 0, "grad": 0}

    @jax.custom_jvp
    def fun(x):
        jax.debug.callback(lambda: calls.update(value=calls["value"] + 1))
        return rosenbrock(x)

    @fun.defjvp
    def _(primals, tangents):
        jax.debug.callback(lambda: calls.update(grad=calls["grad"] + 1))
        return jax.jvp(rosenbrock, primals, tangents)

    result = minimize(fun, START)
    jax.effects_barrier()
    assert calls == {"value": int(result.nfev), "grad": int(result.ngev)}
    np.testing.assert_allclose(
        result.evaluations, calls["grad"] + calls["value"] / 3, rtol=1e-6
    )


def test_values_alone_are_measured_where_the_unit_step_does_not_fit(x64):
    x0 = jnp.tile(START, 10) * jnp.linspace(0.5, 1.5, 20)
    result = minimize(rosenbrock, x0, tol=1e-9)
    assert bool(result.success)
    assert 1 <= int(result.nfev) < 0.5 * int(result.nit)
    two_term = minimize(rosenbrock, x0, method="hs+", tol=1e-9)
    assert int(two_term.nfev) >= int(two_term.nit)  # no length of their own: always


def test_what_is_remembered_is_given_up_where_nothing_gets_smaller(x64):
    # Around the minimum float64 of 1e16 + x² does not change: all progress is rounding.
    stalled = minimize(
        lambda x: 1e16 + jnp.sum(x**2) + 1e-3 * jnp.sum(jnp.sin(1e3 * x)),
        jnp.array([0.3, -0.2]),
        tol=1e-300,
    )
    assert int(stalled.status) == Status.CONVERGED_TO_ROUNDING
    # Given up after 8 of the last 10 iterations; else there were 12 pairs.
    assert int(stalled.nit) == 12
    assert int(stalled.state.direction_state.diagnostics.num_pairs) == 2


def test_pytrees_aux_and_args(x64):
    def fun(p, target):
        gap = p["w"] - target
        return jnp.sum(gap**2) + p["b"] ** 2, {"gap": gap, "calls": jnp.int32(7)}

    start = {"w": jnp.zeros((2, 3)), "b": jnp.array(3.0)}
    target = jnp.arange(6.0).reshape(2, 3)
    result = minimize(fun, start, args=(target,), has_aux=True)
    np.testing.assert_allclose(result.x["w"], target, atol=1e-6)
    np.testing.assert_allclose(result.aux["gap"], result.x["w"] - target, atol=1e-12)
    assert int(result.aux["calls"]) == 7


def test_a_small_tree_is_one_vector_unless_the_direction_tells_arrays_apart(x64):
    weights = {"a": jnp.logspace(0, 2, 6).reshape(2, 3), "b": jnp.float64(5.0)}
    x0 = jax.tree.map(jnp.zeros_like, weights)

    def fun(x):
        parts = jax.tree.map(lambda w, y: jnp.sum(w * (y - 1) ** 2 + y**4), weights, x)
        return parts["a"] + parts["b"]

    def run(method):
        return minimize(fun, x0, method=method, tol=1e-9)

    one_vector = run("limited-memory")
    assert one_vector.state.current.shape == (MULTIPLE,)  # 7 numbers, then zeros
    apart = run(limited_memory_method()._replace(may_be_vector=False))
    chex.assert_trees_all_equal_shapes(apart.state.current, x0)
    # The same in exact arithmetic; sums are taken in another order.
    assert abs(int(one_vector.nit) - int(apart.nit)) <= 1
    chex.assert_trees_all_close(one_vector.x, apart.x, atol=1e-9)
    chex.assert_trees_all_close(
        one_vector.grad, jax.grad(fun)(one_vector.x), atol=1e-12
    )
    # A β for each array, and transformations that we do not know.
    assert nlcg_method("hs+").may_be_vector
    assert not nlcg_method("hs+", scope="per_leaf").may_be_vector
    assert not nlcg_method("hs+", preconditioner=optax.scale_by_rms()).may_be_vector
    assert not limited_memory_method(5, "hs+", scope="per_leaf").may_be_vector
    own = run(optax.identity())
    chex.assert_trees_all_equal_shapes(own.state.current, x0)
    chex.assert_trees_all_close(own.x, apart.x, atol=1e-8)


def test_complex_equals_its_real_twin(x64):
    weights = jnp.array([1.0, 10.0])

    def fun(z):
        return jnp.sum(weights * jnp.abs(z - (1 + 2j)) ** 2) + jnp.sum(jnp.abs(z) ** 4)

    def twin(u):
        return fun(jax.lax.complex(u[:, 0], u[:, 1]))

    got = minimize(fun, jnp.zeros(2, complex), tol=1e-10)
    expected = minimize(twin, jnp.zeros((2, 2)), tol=1e-10)
    np.testing.assert_allclose(got.x, np.array(expected.x) @ [1, 1j], atol=1e-8)
    # The gradient is the direction of steepest ascent.
    np.testing.assert_allclose(got.grad, jnp.conj(jax.grad(fun)(got.x)), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        ("value", lambda f, g0: 1e-3 * (1 + abs(f))),
        ("absolute", lambda f, g0: 1e-3),
        ("relative", lambda f, g0: 1e-3 * g0),
    ],
)
def test_tolerances(x64, kind, bound):
    def fun(x):
        return rosenbrock(x) + 50.0

    result = minimize(fun, START, tol=1e-3, tol_kind=kind)
    limit = bound(float(result.fun), float(jnp.max(jnp.abs(jax.grad(fun)(START)))))
    assert bool(result.success)
    assert 1e-6 * limit < float(jnp.max(jnp.abs(result.grad))) <= limit


def test_the_first_step_does_not_leap_onto_a_plateau(x64):
    # NIST's Rat42 (D. A. Ratkowsky, 1983, yields of a pasture): far away the gradient
    # vanishes at 18223.4; certified sum of squares 8.0565229338.
    t = jnp.array([9.0, 14.0, 21.0, 28.0, 42.0, 57.0, 63.0, 70.0, 79.0])
    y = [8.93, 10.80, 18.59, 22.33, 39.35, 56.11, 61.73, 64.62, 67.08]

    def fun(b):
        return jnp.sum((jnp.array(y) - b[0] / (1 + jnp.exp(b[1] - b[2] * t))) ** 2)

    for method in ("limited-memory", "hs+"):
        result = minimize(fun, jnp.array([100.0, 1.0, 0.1]), method=method)
        np.testing.assert_allclose(result.fun, 8.0565229338, rtol=1e-9)


def test_unbounded_below_is_not_taken_for_a_minimum(x64):
    # f -> -inf linearly: its constant gradient gets small against 1 + |f|.
    result = minimize(lambda x: jnp.sum(x) + jnp.sum(jnp.sin(x)) / 2, START)
    assert int(result.status) == Status.UNBOUNDED_BELOW
    # But a minimum far below zero is one.
    deep = minimize(lambda x: 1e8 * jnp.sum(x**4 / 4 - x), START)
    assert bool(deep.success)
    np.testing.assert_allclose(deep.x, 1.0, atol=1e-6)


@pytest.mark.parametrize("wide", [False, True])
def test_unbounded_below_does_not_depend_on_the_unit_or_an_offset(wide, request):
    if wide:
        request.getfixturevalue("x64")
    # Zero at the start, and -5.5e31 at the minimum.
    deep = minimize(lambda x: 1e31 * jnp.sum(x**4 / 4 - x - 2), jnp.full(2, 2.0))
    assert bool(deep.success)
    np.testing.assert_allclose(deep.x, 1.0, rtol=1e-3)
    # 1e30 times the value at the start is beyond the largest number.
    falls = minimize(lambda x: 1e9 - jnp.sum(x), jnp.zeros(2))
    assert int(falls.status) == Status.UNBOUNDED_BELOW


def test_half_precision_takes_short_steps_and_gives_large_gradients():
    def fun(x):
        return 3e7 * jnp.sum((x.astype(jnp.float32) - 2e-3) ** 2)

    # A step of 1.7e-8 is zero in float16, and a gradient of 6e4 near its largest.
    result = minimize(fun, jnp.array([1e-3], jnp.float16))
    assert bool(result.success)
    np.testing.assert_allclose(result.x, 2e-3, rtol=2**-10)


def test_plain_transformations_are_directions_and_need_one_program(monkeypatch):
    monkeypatch.setattr(programs, "_programs", type(programs._programs)())

    def parabola(x):
        return jnp.sum((x - 1) ** 2)

    descent = optax.scale(0.5)
    for method in (descent, descent, Method(descent)):
        assert bool(minimize(parabola, jnp.zeros(2), method=method).success)
    assert len(programs._programs) == 1
    rules = WolfeRules(max_slope_ratio=jnp.float32(0.5))
    assert bool(minimize(parabola, jnp.zeros(2), method=Method(descent, rules)).success)

    def traced(ratio):
        rules = WolfeRules(max_slope_ratio=ratio)
        return minimize(parabola, jnp.zeros(2), method=Method(descent, rules)).x

    with pytest.raises(TypeError, match="max_slope_ratio=.* is traced"):
        jax.jit(traced)(0.5)


def test_under_jit_and_vmap_equals_one_by_one(x64):
    starts = jnp.array([[-1.2, 1.0], [2.0, 2.0], [0.0, -1.0]])
    batch = jax.jit(jax.vmap(lambda x: minimize(rosenbrock, x, tol=1e-8)))(starts)
    assert batch.message == ["converged: the tolerance is met"] * 3
    for k, start in enumerate(starts):
        one = minimize(rosenbrock, start, tol=1e-8)
        np.testing.assert_allclose(batch.x[k], one.x, atol=1e-7)
        assert abs(int(batch.nit[k]) - int(one.nit)) <= 2


def test_float32_stays_float32_under_x64(x64):
    x0 = jnp.array([-1.2, 1.0], jnp.float32)

    def fun(x):
        return (1 - x[0]) ** 2 + 10 * (x[1] - x[0] ** 2) ** 2

    result = minimize(fun, x0, tol=1e-4)
    assert bool(result.success)
    assert result.x.dtype == result.fun.dtype == jnp.float32
    work = int(result.ngev) + int(result.nfev) / 3
    np.testing.assert_allclose(result.evaluations, work, rtol=1e-6)


def test_own_directions_and_methods(x64):
    for method in (
        scale_by_nlcg("pr+", beta_max=jnp.inf, preconditioner=optax.scale(1e-3)),
        limited_memory_method(5),
        nlcg_method("dy"),
        with_standard_promotion(optax.scale_by_lbfgs()),
    ):
        result = minimize(rosenbrock, START, method=method, max_evaluations=2000)
        assert float(result.fun) < 1e-8


def test_float32_ends_at_its_rounding():
    result = minimize(rosenbrock, START.astype(np.float32), tol=1e-12)
    assert float(result.fun) < 1e-9
    assert bool(result.success)
    assert int(result.nit) < 60


@pytest.mark.parametrize("method", ["limited-memory", "hs+"])
def test_what_cannot_be_minimised_gets_a_status(x64, method):
    run = functools.partial(minimize, method=method)
    flat = run(lambda x: 0.0 * jnp.sum(x), START)
    assert int(flat.status) == Status.CONVERGED
    assert int(flat.nit) == 0
    unbounded = run(lambda x: jnp.sum(x), START, tol_kind="absolute")
    assert int(unbounded.status) == Status.UNBOUNDED_BELOW
    start = run(lambda x: jnp.sum(jnp.log(x)), START)
    assert int(start.status) == Status.NON_FINITE_START
    assert "not finite at x0" in start.message
    np.testing.assert_array_equal(start.x, START)

    @jax.custom_jvp
    def liar(x):
        return jnp.sum(x**2)

    liar.defjvp(lambda p, t: (liar(*p), -2 * jnp.sum(p[0] * t[0])))
    wrong = run(liar, START)
    assert int(wrong.status) in (Status.NO_PROGRESS, Status.STAGNATION)
    assert float(wrong.evaluations) < 500
    np.testing.assert_array_equal(wrong.fun, liar(START))

    noisy = run(lambda x: jnp.sum(x**2) + 1e-3 * jnp.sum(jnp.floor(1e6 * x) % 7), START)
    assert float(noisy.fun) <= 2.44 + 0.014
    assert float(noisy.evaluations) <= 10_001


def test_patience_counts_iterations_without_progress():
    # 2³⁰ hides |x| in float32: each search crosses the kink, between slopes of 1 and
    # -1, so neither the objective nor the gradient gets smaller.
    def kink(x):
        return 2.0**30 + jnp.abs(x)

    start = jnp.float32(1.0)
    for patience in (4, 7):
        result = minimize(kink, start, patience=patience)
        assert int(result.status) == Status.STAGNATION
        assert int(result.nit) == patience
        assert not bool(result.success)
        assert "`patience` iterations" in result.message
    resumed = minimize(kink, start, state=result.state, patience=9)
    assert (int(resumed.status), int(resumed.nit)) == (Status.STAGNATION, 9)
    # Rounding is considered after ten iterations, unless patience ends before.
    patient = minimize(kink, start)
    assert int(patient.status) == Status.CONVERGED_TO_ROUNDING
    assert int(patient.nit) == 10


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"tol": 0.0}, ValueError, "tol=0.0"),
        ({"tol": -1.0}, ValueError, "tol=-1.0"),
        ({"tol": True}, ValueError, "tol=True"),
        ({"tol": np.bool_(True)}, ValueError, "tol=.*True"),
        ({"tol_kind": "both"}, ValueError, "tol_kind='both'"),
        ({"max_iterations": 0}, ValueError, "max_iterations=0"),
        ({"max_evaluations": -1}, ValueError, "max_evaluations=-1"),
        ({"max_evaluations": jnp.array(-1.0)}, ValueError, "max_evaluations=-1"),
        ({"max_iterations": jnp.array(1.5)}, ValueError, "max_iterations=1.5"),
        ({"tol": jnp.array(jnp.nan)}, ValueError, "tol=nan"),
        ({"tol": np.complex64(1)}, ValueError, "tol=.*1"),
        ({"method": "newton"}, ValueError, "method='newton'"),
        ({"method": 3}, TypeError, "method=3"),
        ({"x0": {"a": jnp.array([1, 2])}}, TypeError, "int32|int64"),
        ({"fun": lambda x: x}, TypeError, "real floating-point scalar"),
        ({"fun": lambda x: jax.lax.complex(x, x)[0]}, TypeError, "real floating-point"),
        ({"fun": lambda x: jnp.sum(x).astype(int)}, TypeError, "real floating-point"),
        ({"fun": 3}, TypeError, "fun=3"),
        ({"has_aux": True}, TypeError, "pair"),
        ({"new_objective": True}, ValueError, "new_objective=True needs a state"),
    ],
)
def test_bad_input_is_named(kwargs, error, message):
    start = START.astype(np.float32)
    arguments = {"fun": rosenbrock, "x0": start, **kwargs}
    with pytest.raises(error, match=message):
        minimize(**arguments)


def test_inside_optimistix():
    tx = optax.chain(
        scale_by_nlcg("pr+", beta_max=jnp.inf),
        optax.scale(-1.0),
        scale_by_hager_zhang_linesearch(max_slope_ratio=0.1),
    )
    solver = optimistix.OptaxMinimiser(tx, rtol=1e-6, atol=1e-6)
    solution = optimistix.minimise(
        lambda x, args: rosenbrock(x), solver, START, max_steps=500
    )
    np.testing.assert_allclose(solution.value, 1.0, atol=1e-3)
