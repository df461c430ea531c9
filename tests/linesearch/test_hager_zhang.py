"""The Hager-Zhang transformation after several directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import (
    nlcg,
    scale_by_hager_zhang_linesearch,
    scale_by_nlcg,
    split_parameters,
)
from nlcg_optax.dtypes import with_standard_promotion


def rosenbrock(x):
    return jnp.sum((1 - x[::2]) ** 2 + 100 * (x[1::2] - x[::2] ** 2) ** 2)


LBFGS = with_standard_promotion(optax.scale_by_lbfgs())
DIRECTIONS = {
    "hs+": (scale_by_nlcg("hs+", beta_max=jnp.inf), {"max_slope_ratio": 0.1}),
    "hz": (scale_by_nlcg("hz", beta_min=-jnp.inf, beta_max=jnp.inf), {}),
    "lbfgs": (LBFGS, {"initial_step": "one"}),
    "lbfgs, adaptive": (
        LBFGS,
        {"initial_step": "one", "quadratic_step": "adaptive"},
    ),
    "preconditioned": (
        scale_by_nlcg("pr+", preconditioner=optax.scale(0.01)),
        {"max_slope_ratio": 0.1},
    ),
}


def _solver(direction, **kwargs):
    search = scale_by_hager_zhang_linesearch(**kwargs)
    return optax.chain(direction, optax.scale(-1.0), search)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _run(fun, tx, x, steps):
    value_and_grad = optax.value_and_grad_from_state(fun)

    def step(_, carry):
        x, state = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=fun)
        return optax.apply_updates(x, updates), state

    return jax.lax.fori_loop(0, steps, step, (x, tx.init(x)))


@pytest.mark.parametrize(("scale", "num_values"), [(1.0, 1), (2.5, 1), (5.0, 4)])
def test_adaptive_quadratic_step_measures_only_where_one_does_not_fit(
    scale, num_values
):
    # Along scale times the Newton direction the minimizer is at 1 / scale: within a
    # factor of three, or not. The first search always measures.
    tx = _solver(
        optax.scale(scale),
        initial_step="one",
        quadratic_step="adaptive",
        sufficient_decrease=1e-3,
    )
    x, state = _run(lambda x: 0.5 * jnp.sum(x**2), tx, jnp.array([2.0, -1.0]), 1)
    assert int(state[-1].diagnostics.num_values) == 1
    for _ in range(3):
        # Anew from a point away from the minimum, with the state of before.
        x = jnp.array([2.0, -1.0])
        _, state = tx.update(
            x,
            state,
            x,
            value=0.5 * jnp.sum(x**2),
            grad=x,
            value_fn=lambda x: 0.5 * jnp.sum(x**2),
        )
    assert int(state[-1].diagnostics.num_values) == num_values


@pytest.mark.parametrize("name", DIRECTIONS)
def test_minimizes_rosenbrock_after_any_direction(x64, name):
    direction, kwargs = DIRECTIONS[name]
    x, state = _run(
        rosenbrock, _solver(direction, **kwargs), jnp.array([-1.2, 1.0]), 90
    )
    np.testing.assert_allclose(x, 1.0, atol=1e-6)
    search = state[-1]
    np.testing.assert_allclose(search.value, rosenbrock(x), rtol=1e-12)
    np.testing.assert_allclose(search.grad, jax.grad(rosenbrock)(x), atol=1e-12)


def test_counts_what_it_measures_and_pays_nothing_twice(x64):
    calls = {"value": 0, "grad": 0}

    @jax.custom_jvp
    def fun(x):
        jax.debug.callback(lambda: calls.update(value=calls["value"] + 1))
        return rosenbrock(x)

    @fun.defjvp
    def _(primals, tangents):
        jax.debug.callback(lambda: calls.update(grad=calls["grad"] + 1))
        return jax.jvp(rosenbrock, primals, tangents)

    _, state = _run(fun, _solver(scale_by_nlcg("pr+")), jnp.array([-1.2, 1.0]), 20)
    jax.effects_barrier()
    search = state[-1].diagnostics
    assert calls["value"] == int(search.num_values)
    assert calls["grad"] == int(search.num_gradients) + 1  # one at the start
    assert 20 <= int(search.num_gradients) <= 60


def test_accepted_steps_satisfy_the_conditions(x64):
    tx = scale_by_hager_zhang_linesearch()
    rng = np.random.default_rng(0)
    update = jax.jit(functools.partial(tx.update, value_fn=rosenbrock))
    for _ in range(20):
        x = jnp.asarray(rng.standard_normal(6))
        value, grad = jax.value_and_grad(rosenbrock)(x)
        d = -grad * jnp.asarray(rng.uniform(0.1, 10.0, 6))
        updates, state = update(d, tx.init(x), x, value=value, grad=grad)
        t = state.diagnostics.step_size
        assert bool(state.diagnostics.accepted)
        np.testing.assert_allclose(updates, t * d)
        slope, new = grad @ d, jax.grad(rosenbrock)(x + updates) @ d
        decrease = rosenbrock(x + updates) - value
        assert new >= 0.9 * slope
        assert decrease <= 0.1 * t * slope or (
            new <= -0.8 * slope and decrease <= 1e-6 * abs(value)
        )


def test_n_steps_on_a_quadratic(x64):
    scale = jnp.logspace(0, 2, 8)

    def quadratic(x):
        return 0.5 * jnp.sum(scale * (x - 1) ** 2)

    x, _ = _run(
        quadratic, _solver(scale_by_nlcg("hs", beta_max=jnp.inf)), jnp.zeros(8), 8
    )
    np.testing.assert_allclose(x, 1.0, atol=1e-5)


def test_non_finite_trials_are_survived(x64):
    def barrier(x):  # not a number for x >= 1
        return jnp.sum(-jnp.log(1 - x) - 0.5 * x)

    x, state = _run(
        barrier, _solver(scale_by_nlcg("pr+")), jnp.array([-30.0, -2.0]), 25
    )
    np.testing.assert_allclose(x, -1.0, atol=1e-6)
    assert np.isfinite(state[-1].value)


@pytest.mark.parametrize(
    "direction", [[1.0, 1.0], [0.0, 0.0], [jnp.nan, -1.0], [jnp.inf, -1.0]]
)
@pytest.mark.filterwarnings("ignore:.*value_fn rises along the updates")
def test_directions_that_do_not_descend_give_no_step(direction):
    tx = scale_by_hager_zhang_linesearch()
    x = jnp.array([1.0, 2.0])
    value, grad = jax.value_and_grad(lambda x: jnp.sum(x**2))(x)
    updates, state = tx.update(
        jnp.array(direction),
        tx.init(x),
        x,
        value=value,
        grad=grad,
        value_fn=lambda x: jnp.sum(x**2),
    )
    np.testing.assert_array_equal(updates, 0.0)
    assert not bool(state.diagnostics.accepted)
    assert int(state.diagnostics.num_gradients) == 0
    np.testing.assert_array_equal(state.grad, grad)


def test_flat_and_unbounded_functions_end():
    tx = scale_by_hager_zhang_linesearch()
    x = jnp.ones(4)  # their sum is infinite at finite parameters
    for fun in (lambda x: 0.0 * jnp.sum(x), lambda x: jnp.sum(x)):
        value, grad = jax.value_and_grad(fun)(x)
        _, state = jax.jit(functools.partial(tx.update, value_fn=fun))(
            -grad - 1e-3, tx.init(x), x, value=value, grad=grad
        )
        assert np.isfinite(state.value)
        assert int(state.diagnostics.num_gradients) <= 50


def test_vmap_equals_one_by_one(x64):
    tx = _solver(scale_by_nlcg("pr+"))
    starts = jnp.array([[-1.2, 1.0], [2.0, 2.0], [0.0, -1.0]])
    together, _ = jax.vmap(lambda x: _run(rosenbrock, tx, x, 12))(starts)
    for start, end in zip(starts, together, strict=True):
        np.testing.assert_allclose(end, _run(rosenbrock, tx, start, 12)[0], rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_low_precision_keeps_types_and_descends(dtype):
    params = {"w": jnp.full(3, 2.0, dtype), "b": jnp.ones((), dtype)}

    def fun(p):
        return jnp.sum(p["w"] ** 2) + (p["b"] - 3) ** 2

    tx = _solver(scale_by_nlcg("pr+"))
    state = tx.init(params)
    value, grad = jax.value_and_grad(fun)(params)
    updates, new = jax.jit(functools.partial(tx.update, value_fn=fun))(
        grad, state, params, value=value, grad=grad
    )
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
    assert fun(optax.apply_updates(params, updates)) < 0.1 * value


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_with_a_float32_loss_run_in_the_loop_of_optax(dtype):
    def fun(x):
        return jnp.sum((x - 3) ** 2).astype(jnp.float32)

    x, state = _run(fun, nlcg(), jnp.zeros(5, dtype), 5)
    assert x.dtype == dtype
    np.testing.assert_array_equal(x.astype(jnp.float32), 3.0)
    assert optax.tree.get(state, "value").dtype == jnp.float32


@pytest.mark.devices
def test_sharded_equals_unsharded():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    tx, x = _solver(scale_by_nlcg("pr+")), jnp.linspace(-1.0, 2.0, 16)

    def fun(x):
        return jnp.sum((x - 1) ** 4 + (x - 1) ** 2)

    expected, _ = _run(fun, tx, x, 5)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("x")))
        got, _ = _run(fun, tx, sharded, 5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.devices
def test_split_by_hand_equals_unsplit(x64):
    # The largest entries, which the first step is made of, lie on one device.
    x = jnp.linspace(-1.0, 2.0, 8)
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(x):
        return jnp.sum((x - 1) ** 4 + (x - 1) ** 2)

    def run(x, fun, axis_name):
        tx = optax.chain(optax.scale(-1.0), scale_by_hager_zhang_linesearch())
        if axis_name is not None:
            tx = split_parameters(tx, axis_name)
        value, grad = jax.value_and_grad(fun)(x)
        updates, _ = tx.update(
            grad, tx.init(x), x, value=value, grad=grad, value_fn=fun
        )
        return updates

    def split(x):
        return run(x, lambda v: jax.lax.psum(local(v), "i"), "i")

    split_x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("i")))
    by_hand = jax.shard_map(split, mesh=mesh, in_specs=jax.P("i"), out_specs=jax.P("i"))
    got = jax.jit(by_hand)(split_x)
    np.testing.assert_allclose(got, run(x, local, None), rtol=1e-12)


def test_extra_arguments_reach_the_objective_or_are_ignored():
    tx, x = scale_by_hager_zhang_linesearch(), jnp.ones(2)

    def fun(x, scale):
        return scale * jnp.sum(x**2)

    updates, _ = tx.update(
        -x, tx.init(x), x, value=6.0, grad=6 * x, value_fn=fun, scale=3.0, other="?"
    )
    np.testing.assert_allclose(updates, -1.0, rtol=1e-5)


def test_an_update_outside_of_jit_is_that_inside():
    tx, x = _solver(scale_by_nlcg("pr+")), jnp.array([-1.2, 1.0])
    value, grad = jax.value_and_grad(rosenbrock)(x)
    update = functools.partial(tx.update, value_fn=rosenbrock)
    eager, state = update(grad, tx.init(x), x, value=value, grad=grad)
    jitted, expected = jax.jit(update)(grad, tx.init(x), x, value=value, grad=grad)
    # A few units of rounding of the step, which fused operations round otherwise.
    np.testing.assert_allclose(eager, jitted, rtol=1e-5)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, expected)
    found, expected = state[-1].diagnostics, expected[-1].diagnostics
    assert found.num_gradients == expected.num_gradients


def test_at_the_minimum_failed_searches_are_short_and_nothing_is_lost():
    times = np.linspace(0.0, 4.0, 40)
    noise = 0.02 * np.random.default_rng(2).normal(size=40)
    data = 1.7 * np.exp(-0.8 * times) + 0.3 + noise

    def fit(p):
        return jnp.sum((p[0] * jnp.exp(-p[1] * times) + p[2] - data) ** 2)

    tx = optax.chain(
        scale_by_nlcg("hs+"),
        optax.scale(-1.0),
        scale_by_hager_zhang_linesearch(max_slope_ratio=0.1),
    )
    value_and_grad = optax.value_and_grad_from_state(fit)

    def step(carry, _):
        x, state = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=fit)
        count = state[-1].diagnostics.num_gradients
        return (optax.apply_updates(x, updates), state), (count, grad)

    with jax.enable_x64(True):
        x = jnp.array([1.0, 1.0, 0.1])
        _, (counts, grads) = jax.jit(
            lambda x: jax.lax.scan(step, (x, tx.init(x)), length=200)
        )(x)
    sizes = np.max(np.abs(grads), axis=1)
    # Rounding of the gradient: some units of its forty terms of size one.
    assert np.min(sizes) <= 100 * np.finfo(float).eps
    assert int(counts[np.argmax(sizes <= 1e-12 * sizes[0])]) <= 80
    # The third gradient closes the bracket of each; bisected to the end they take 7.
    assert np.mean(np.diff(counts)[-100:]) <= 3.5
