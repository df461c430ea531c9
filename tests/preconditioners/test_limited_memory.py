"""The limited-memory preconditioner against a two-loop recursion and a dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nlcg_optax
from nlcg_optax import scale_by_limited_memory, scale_by_nlcg
from nlcg_optax.preconditioners.limited_memory import forget_pairs


def two_loop(g, pairs):
    """Nocedal 1980, pair by pair, newest last."""
    q, alphas = g.copy(), []
    for s, y in reversed(pairs):
        alphas.append((s @ q) / (s @ y))
        q = q - alphas[-1] * y
    if pairs:
        s, y = pairs[-1]
        q = q * (s @ y) / (y @ y)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + s * (alpha - (y @ q) / (s @ y))
    return q


def _tree(v):
    return {"a": jnp.asarray(v[:8]), "b": jnp.asarray(v[8:]).reshape(3, 4)}


def _flat(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["b"])])


@pytest.mark.parametrize("memory", [1, 3, 7, 30])
def test_equals_the_two_loop_recursion(x64, memory):
    rng = np.random.default_rng(0)
    hessian = rng.standard_normal((20, 20))
    hessian = hessian @ hessian.T + np.eye(20)
    tx = scale_by_limited_memory(memory)
    state = tx.init(_tree(np.zeros(20)))
    update, pairs, before, refused = jax.jit(tx.update), [], None, 0
    for k in range(25):
        x = rng.standard_normal(20) * (1 + k)
        g = hessian @ x * (-1.0 if k % 5 == 4 else 1.0)  # now and then not convex
        z, state = update(_tree(g), state, _tree(x))
        if before is not None:
            s, y = x - before[0], g - before[1]
            if s @ y > 1e-12 * np.linalg.norm(s) * np.linalg.norm(y):
                pairs = [*pairs, (s, y)][-memory:]
            else:
                refused += 1
        before = x, g
        expected = two_loop(g, pairs)
        error = np.abs(_flat(z) - expected).max() / np.abs(expected).max()
        assert error < 1e-10
        assert g @ _flat(z) > 0
    assert int(state.diagnostics.num_refused_pairs) == refused > 0
    assert int(state.diagnostics.num_pairs) == len(pairs)


def test_after_forgetting_it_goes_on_like_a_new_one(x64):
    rng = np.random.default_rng(1)
    hessian = np.diag(np.arange(1.0, 21.0))
    points = rng.standard_normal((14, 20))
    tx = scale_by_limited_memory(4)
    update, old, new = jax.jit(tx.update), tx.init(_tree(points[0])), None
    for k, x in enumerate(points):
        if k == 7:  # the circular memory is full, and its newest row not the first
            assert int(old.diagnostics.num_pairs) == 4
            old, new = forget_pairs(old), tx.init(_tree(x))
        z, old = update(_tree(hessian @ x), old, _tree(x))
        if new is not None:
            expected, new = update(_tree(hessian @ x), new, _tree(x))
            np.testing.assert_allclose(_flat(z), _flat(expected), rtol=1e-11)
            assert old.diagnostics.num_pairs == new.diagnostics.num_pairs


def test_a_gradient_that_is_not_finite_leaves_nothing_behind(x64):
    rng = np.random.default_rng(3)
    hessian, tx = np.diag(np.arange(1.0, 21.0)), scale_by_limited_memory(3)
    update, state = jax.jit(tx.update), tx.init(_tree(np.zeros(20)))
    pairs, before = [], None
    for k in range(8):
        x = rng.standard_normal(20)
        g = hessian @ x if k != 4 else np.full(20, np.nan)
        z, state = update(_tree(g), state, _tree(x))
        if before is not None and np.isfinite(g - before[1]).all():
            pairs = [*pairs, (x - before[0], g - before[1])][-3:]
        before = x, g
        if k != 4:
            expected = two_loop(g, pairs)
            np.testing.assert_allclose(_flat(z), expected, rtol=1e-9, atol=1e-9)
    assert int(state.diagnostics.num_refused_pairs) == 2


@pytest.mark.parametrize(("size", "pairs"), [(1, 7), (2, 15), (3, 15), (4, 31)])
def test_a_few_parameters_need_few_pairs(size, pairs):
    state = scale_by_limited_memory(31).init(jnp.zeros(size))
    assert state.inverse.shape == (pairs + 1, pairs + 1)
    assert state.steps.shape == (pairs + 1, size)


def test_old_pairs_of_a_few_parameters_leave(x64):
    rng = np.random.default_rng(0)
    tx, pairs = scale_by_limited_memory(31), []
    update, x, g = jax.jit(tx.update), np.zeros(2), np.zeros(2)
    state = tx.init(jnp.zeros(2))
    for _ in range(20):
        before, x = (x, g), rng.standard_normal(2)
        g = np.array([1.0, 10.0]) * x
        z, state = update(jnp.asarray(g), state, jnp.asarray(x))
        pairs = [*pairs, (x - before[0], g - before[1])][-15:]
    # The first pair is not one: nothing was known before the first update.
    assert int(state.diagnostics.num_pairs) == 15
    np.testing.assert_allclose(z, two_loop(g, pairs), rtol=1e-9)


def test_is_the_inverse_hessian_after_n_independent_pairs(x64):
    rng = np.random.default_rng(1)
    hessian = np.diag([1.0, 10.0, 100.0, 1000.0])
    tx = scale_by_limited_memory(4)
    x = np.zeros(4)
    state = tx.init(jnp.asarray(x))
    _, state = tx.update(jnp.asarray(hessian @ x), state, jnp.asarray(x))
    for i in range(4):  # conjugate steps, as on a quadratic with exact searches
        x = x + np.eye(4)[i]
        _, state = tx.update(jnp.asarray(hessian @ x), state, jnp.asarray(x))
    # The same parameters again: no new pair (sᵀy = 0), so P is what it was.
    for g in (hessian @ x, rng.standard_normal(4)):
        z, state = tx.update(jnp.asarray(g), state, jnp.asarray(x))
        np.testing.assert_allclose(z, g / np.diag(hessian), rtol=1e-9)


@pytest.mark.parametrize(("min_cosine", "num_pairs"), [(0.5, 0), (0.3, 1)])
def test_a_pair_at_too_wide_an_angle_is_refused(min_cosine, num_pairs):
    s, y = np.array([1.0, 0.0]), np.array([0.4, np.sqrt(0.84)])  # a cosine of .4
    tx = scale_by_limited_memory(min_cosine=min_cosine)
    zero = jnp.zeros(2)
    _, state = tx.update(zero, tx.init(zero), zero)
    z, state = tx.update(jnp.asarray(y, zero.dtype), state, jnp.asarray(s, zero.dtype))
    assert state.diagnostics.num_pairs == num_pairs
    assert state.diagnostics.num_refused_pairs == 1 - num_pairs
    # P y = s with the pair, P = I without it.
    np.testing.assert_allclose(z, s if num_pairs else y, rtol=1e-6, atol=1e-6)


def test_complex_equals_its_real_twin(x64):
    rng = np.random.default_rng(2)
    tx = scale_by_limited_memory(3)
    state_c = tx.init(jnp.zeros(5, complex))
    state_r = tx.init(jnp.zeros((5, 2)))
    scale = np.arange(1.0, 6.0)
    for _ in range(6):
        x = rng.standard_normal((5, 2))
        g = scale[:, None] * x
        z_r, state_r = tx.update(jnp.asarray(g), state_r, jnp.asarray(x))
        z_c, state_c = tx.update(
            jnp.asarray(g[:, 0] + 1j * g[:, 1]), state_c, jnp.asarray(x @ [1, 1j])
        )
        np.testing.assert_allclose(z_c, np.asarray(z_r) @ [1, 1j], rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_state_keeps_its_types_under_jit(dtype):
    params = {"w": jnp.ones((3, 2), dtype), "b": jnp.ones(2, dtype)}
    tx = scale_by_limited_memory(4)
    state = tx.init(params)
    _, new = jax.jit(tx.update)(params, state, params)
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)


@pytest.mark.devices
def test_sharded_on_an_explicit_mesh_equals_unsharded():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    tx = scale_by_limited_memory(3)
    scale = jnp.linspace(1.0, 5.0, 16)

    def run(x, scale):
        state = tx.init(x)
        z = x
        for k in range(4):
            at = x * (1.0 + k) + jnp.sin(k * x)
            z, state = tx.update(scale * at, state, at)
        return z

    x = jnp.linspace(-1.0, 1.0, 16)
    expected = run(x, scale)
    with jax.set_mesh(mesh):
        sharding = jax.NamedSharding(mesh, jax.P("x"))
        got = run(jax.device_put(x, sharding), jax.device_put(scale, sharding))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_nested_in_nlcg_beats_two_term_nlcg_on_ill_conditioned_least_squares(x64):
    scale = jnp.logspace(0, 6, 12)

    def loss(x):
        return 0.5 * jnp.sum(scale * (x - 1.0) ** 2) + jnp.sum((x - 1.0) ** 4)

    work = {
        method: float(nlcg_optax.minimize(loss, jnp.zeros(12), method=method).ngev)
        for method in ("limited-memory", "pr+")
    }
    assert work["limited-memory"] < 0.8 * work["pr+"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="memory=0"):
        scale_by_limited_memory(0)
    with pytest.raises(ValueError, match="min_cosine=-1"):
        scale_by_limited_memory(min_cosine=-1.0)
    with pytest.raises(ValueError, match=r"min_cosine=2.0 is not in \[0, 1\)"):
        scale_by_limited_memory(min_cosine=2.0)
    tx = scale_by_limited_memory(2)
    with pytest.raises(ValueError, match="needs `params`"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(TypeError, match="int32"):
        tx.init(jnp.ones(2, jnp.int32))


def test_donation_meets_no_buffer_twice():
    tx = optax.chain(
        scale_by_nlcg(0.0, preconditioner=scale_by_limited_memory(3)),
        optax.scale_by_learning_rate(0.1),
    )
    params = jnp.ones(4)
    step = jax.jit(tx.update, donate_argnums=1)
    updates, state = step(params, tx.init(params), params)
    updates, state = step(updates, state, params)
    assert updates.shape == (4,)


def test_a_pair_whose_change_of_the_gradient_underflows_is_refused():
    tx = scale_by_limited_memory(3)
    state = tx.init(jnp.zeros(2))
    for x, g in ((0.0, 1e-25), (1.0, 2e-25)):  # yᵀy = 2e-50
        z, state = tx.update(jnp.full(2, g), state, jnp.full(2, x))
        np.testing.assert_array_equal(z, np.full(2, g, np.float32))
    assert state.diagnostics.num_refused_pairs == 1
