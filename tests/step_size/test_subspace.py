"""`scale_by_subspace_step`: the plane by hand, the damping, the fallbacks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.sparse.linalg import cg

from nlcg_optax import diagnostics, scale_by_nlcg, scale_by_subspace_step

A = np.diag([1.0, 2.0, 5.0, 10.0]) + 0.5


def quadratic(x):
    return 0.5 * x @ jnp.asarray(A, x.dtype) @ x


def _run(tx, fun, x, steps, **extras):
    extras = extras or {"value_fn": fun}

    @jax.jit
    def step(x, state):
        updates, state = tx.update(jax.grad(fun)(x), state, x, **extras)
        return optax.apply_updates(x, updates), state

    state = tx.init(x)
    path = [x]
    for _ in range(steps):
        x, state = step(x, state)
        path.append(x)
    return path, state


@pytest.mark.parametrize("preconditioned", [False, True])
def test_is_conjugate_gradients_on_a_quadratic(x64, preconditioned):
    """Step by step those of SciPy's linear solver, with and without P."""
    scale = np.diag([1.0, 0.5, 0.2, 0.1]) if preconditioned else np.eye(4)
    precondition = optax.stateless(
        lambda g, _: jax.tree.map(lambda x: jnp.asarray(scale) @ x, g)
    )
    tx = optax.chain(
        scale_by_nlcg(0.0, preconditioner=precondition),
        scale_by_subspace_step(initial_damping=0.0),
        optax.scale_by_learning_rate(1.0),
    )
    start = jnp.array([1.0, -2.0, 3.0, 0.5])
    path, state = _run(tx, quadratic, start, 4)
    expected = [np.asarray(start)]
    cg(
        A,
        np.zeros(4),
        start,
        rtol=1e-15,
        M=scale,
        callback=lambda x: expected.append(x.copy()),
    )
    for mine, theirs in zip(path, expected[:5]):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)
    found = diagnostics(state)
    assert found["num_curvature_skips"] == found["num_rejected"] == 0
    assert found["damping"] == 0


def test_one_damped_step_by_hand(x64):
    tx = scale_by_subspace_step("gauss_newton", initial_damping=0.3)
    rng = np.random.default_rng(0)
    x, u, s = (jnp.asarray(rng.normal(size=4)) for _ in range(3))
    root = np.linalg.cholesky(A).T
    state = tx.init(x)._replace(previous_updates=s)
    updates, state = tx.update(
        u,
        state,
        x,
        outputs_fn=lambda p: root @ p,
        output_loss_fn=lambda z: 0.5 * jnp.sum(z**2),
    )
    span = np.stack([u, s])
    matrix, slopes = span @ A @ span.T, span @ A @ x
    coefficients = np.linalg.solve(matrix + 0.3 * np.diag(np.diag(matrix)), slopes)
    np.testing.assert_allclose(updates, coefficients @ span, rtol=1e-10)
    np.testing.assert_allclose(state.previous_updates, updates)
    found = diagnostics(state)
    np.testing.assert_allclose(
        [found["step_size"], found["momentum"]], coefficients, rtol=1e-10
    )
    # The model is exact: the damping shrinks by a third.
    np.testing.assert_allclose(found["reduction_ratio"], 1, rtol=1e-10)
    np.testing.assert_allclose(found["damping"], 0.2, rtol=1e-12)


def test_the_damping_follows_the_reduction_ratio(x64):
    """log cosh: Newton's step from 1.5 overshoots so far that the loss rises."""
    f = lambda x: jnp.sum(jnp.log(jnp.cosh(x)))
    x = jnp.array([1.5])
    slope, curve = np.tanh(1.5), 1 / np.cosh(1.5) ** 2

    def expected_ratio(a):
        predicted = a * slope - 0.5 * a * a * curve
        return (f(x) - f(x - a))[()] / predicted

    u = jnp.ones(1)
    for damping, grows, rejects in (
        (0.0, True, True),
        (1.0, True, False),
        (3.0, False, False),
    ):
        tx = scale_by_subspace_step(initial_damping=damping)
        updates, state = tx.update(u, tx.init(x), x, value_fn=f)
        a = slope / curve / (1 + damping)
        found = diagnostics(state)
        np.testing.assert_allclose(found["step_size"], a, rtol=1e-10)
        np.testing.assert_allclose(found["reduction_ratio"], expected_ratio(a), 1e-9)
        assert (expected_ratio(a) < 0) == rejects
        assert (expected_ratio(a) < 0.25) == grows
        assert int(found["num_rejected"]) == rejects
        np.testing.assert_allclose(updates, [0.0 if rejects else a], rtol=1e-10)
        new_damping = max(1.5 * damping, 1e-6) if grows else damping * 2 / 3
        np.testing.assert_allclose(found["damping"], new_damping, rtol=1e-12)
    # Without the test the step is taken and the damping stays.
    tx = scale_by_subspace_step(initial_damping=0.0, adapt_damping=False)
    updates, state = tx.update(u, tx.init(x), x, value_fn=f)
    np.testing.assert_allclose(updates, [slope / curve], rtol=1e-10)
    assert diagnostics(state)["damping"] == 0


@pytest.mark.slow
def test_coefficients_are_kept_between_measurements(x64):
    tx = scale_by_subspace_step(refresh_period=2, initial_damping=0.1)
    rng = np.random.default_rng(0)
    x, u0, u1, u2 = (jnp.asarray(rng.normal(size=4)) for _ in range(4))
    update = jax.jit(lambda u, s: tx.update(u, s, x, value_fn=quadratic))
    _, state = update(u0, tx.init(x))
    a0 = diagnostics(state)["step_size"]
    second, state = update(u1, state)
    np.testing.assert_allclose(second, a0 * u1, rtol=1e-12)
    _, state = update(u2, state)
    assert diagnostics(state)["momentum"] != 0
    b, s = np.clip(diagnostics(state)["momentum"], -1, 1), state.previous_updates
    third, state = update(u0, state)
    a = diagnostics(state)["step_size"]
    np.testing.assert_allclose(third, a * u0 + b * s, rtol=1e-12)


def test_fallbacks_are_counted_and_leave_a_usable_state(x64):
    saddle = lambda x: 0.5 * (2 * x[0] ** 2 - 4 * x[1] ** 2) + jnp.sum(0 * x)
    x = jnp.array([1.0, 1.0])  # gradient (2, -4)
    tx = scale_by_subspace_step(adapt_damping=False, initial_damping=0.0)
    update = jax.jit(lambda u, s: tx.update(u, s, x, value_fn=saddle))

    def after(u, previous=(0.0, 0.0), step_size=0.0):
        state = tx.init(x)._replace(
            previous_updates=jnp.array(previous), step_size=jnp.asarray(step_size)
        )
        updates, state = update(jnp.array(u), state)
        found = diagnostics(state)
        counts = found["num_curvature_skips"], found["num_zero_directions"]
        return np.asarray(updates), tuple(map(int, counts)), state

    # Along u = (2, 0): slope 4, curvature 8. The first step has no plane.
    updates, counts, _ = after((2.0, 0.0))
    np.testing.assert_allclose(updates, [1.0, 0.0])
    assert counts == (0, 0)
    # Negative curvature along the last step: along u alone.
    updates, counts, _ = after((2.0, 0.0), previous=(0.0, 1.0))
    np.testing.assert_allclose(updates, [1.0, 0.0])
    assert counts == (1, 0)
    # The same direction twice: along u alone.
    updates, counts, _ = after((2.0, 0.0), previous=(1.0, 0.0))
    np.testing.assert_allclose(updates, [1.0, 0.0])
    assert counts == (1, 0)
    # Negative curvature along u = (0, -1), slope 4, curvature -4: the last step size,
    # or at first the absolute value.
    updates, counts, _ = after((0.0, -1.0), previous=(1.0, 0.0), step_size=0.25)
    np.testing.assert_allclose(updates, [0.0, -0.25])
    assert counts == (1, 0)
    updates, counts, _ = after((0.0, -1.0))
    np.testing.assert_allclose(updates, [0.0, -1.0])
    assert counts == (1, 0)
    # Nothing to follow, nothing finite: no step, and the last one is remembered.
    for u, expected in (((0.0, 0.0), (0, 1)), ((np.nan, 1.0), (1, 0))):
        updates, counts, state = after(u, previous=(1.0, 0.0), step_size=0.25)
        np.testing.assert_array_equal(updates, 0)
        assert counts == expected
        np.testing.assert_array_equal(state.previous_updates, [1.0, 0.0])
        assert diagnostics(state)["step_size"] == 0.25


def test_a_loss_that_is_not_finite_at_the_new_point_is_refused(x64):
    f = lambda x: -jnp.log(x[0]) + 3 * x[0]  # infinite at zero
    x = jnp.array([0.9])
    tx = scale_by_subspace_step(initial_damping=0.0)
    updates, state = tx.update(jnp.array([1.0]), tx.init(x), x, value_fn=f)
    # Newton's step (3 - 1/.9) * .81 = 1.53 leaves the domain.
    np.testing.assert_array_equal(updates, [0.0])
    assert diagnostics(state)["num_rejected"] == 1
    assert diagnostics(state)["reduction_ratio"] == -np.inf


@pytest.mark.slow
def test_an_own_product(x64):
    tx = scale_by_subspace_step(initial_damping=0.0)
    rng = np.random.default_rng(0)
    x, u, s = (jnp.asarray(rng.normal(size=4)) for _ in range(3))
    state = tx.init(x)._replace(previous_updates=s)
    by_product, _ = tx.update(
        u,
        state,
        x,
        hvp_fn=lambda params, v: A @ v,
        grad=jnp.asarray(A @ x),
        value=quadratic(x),
        value_fn=quadratic,
    )
    direct, _ = tx.update(u, state, x, value_fn=quadratic)
    np.testing.assert_allclose(by_product, direct, rtol=1e-10)
    with pytest.raises(ValueError, match="update needs `value`"):
        tx.update(u, state, x, hvp_fn=lambda p, v: v, grad=x, value_fn=quadratic)


def test_bad_input():
    with pytest.raises(ValueError, match="curvature=None is unknown"):
        scale_by_subspace_step(None)
    with pytest.raises(ValueError, match="initial_damping=-1 must be finite"):
        scale_by_subspace_step(initial_damping=-1)
    with pytest.raises(ValueError, match="refresh_period=0 must be an integer"):
        scale_by_subspace_step(refresh_period=0)
    x, tx = jnp.ones(2), scale_by_subspace_step("gauss_newton")
    with pytest.raises(ValueError, match="update needs `outputs_fn`"):
        tx.update(x, tx.init(x), x, value_fn=jnp.sum)
    with pytest.raises(ValueError, match="updates has the tree structure"):
        tx.update([x], tx.init(x), x, outputs_fn=abs, output_loss_fn=jnp.sum)
