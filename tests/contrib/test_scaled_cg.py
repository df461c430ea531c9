"""`scale_by_scaled_cg_step` against Møller's algorithm in NumPy; its fallbacks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics, scale_by_nlcg
from nlcg_optax.contrib.scaled_cg import scale_by_scaled_cg_step


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def _gradient(x):
    inner = x[1] - x[0] ** 2
    return np.array([-2 * (1 - x[0]) - 400 * x[0] * inner, 200 * inner])


def _hessian(x):
    return np.array(
        [[2 - 400 * (x[1] - 3 * x[0] ** 2), -400 * x[0]], [-400 * x[0], 200.0]]
    )


def moller(x, steps):
    """Steps 2 to 9 of the paper's algorithm, with the exact curvature."""
    damping, restarts_after = 1e-6, len(x)
    r = -_gradient(x)
    p, path, rejections, negative = r, [], 0, 0
    for k in range(1, steps + 1):
        success = False
        curvature, norm = p @ _hessian(x) @ p, p @ p
        delta = curvature + damping * norm
        if delta <= 0:
            damping_new = 2 * (damping - delta / norm)
            delta = -delta + damping * norm
            damping, negative = damping_new, negative + 1
        while not success:
            mu = p @ r
            alpha = mu / delta
            comparison = 2 * delta * (rosenbrock(x) - rosenbrock(x + alpha * p)) / mu**2
            comparison = max(comparison, -10.0)
            before = damping
            success = comparison >= 0
            if comparison >= 0.75:
                damping = damping / 4
            if comparison < 0.25:
                damping = damping + delta * (1 - comparison) / norm
            if not success:
                delta, rejections = delta + (damping - before) * norm, rejections + 1
        x = x + alpha * p
        r_new = -_gradient(x)
        if k % restarts_after == 0:
            p = r_new
        else:
            p = r_new + max(r_new @ r_new - r_new @ r, 0) / mu * p
        r = r_new
        path.append(x)
    return np.array(path), damping, rejections, negative


def test_follows_the_algorithm_of_the_paper(x64):
    tx = optax.chain(
        scale_by_nlcg("ls", restart_period=2, beta_min=0.0),
        scale_by_scaled_cg_step(),
        optax.scale_by_learning_rate(1.0),
    )
    x = jnp.array([0.3, 5.0])  # of negative curvature along the gradient

    @jax.jit
    def run(x):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(
                jax.grad(rosenbrock)(x), state, x, value_fn=rosenbrock
            )
            x = optax.apply_updates(x, updates)
            return (x, state), x

        return jax.lax.scan(step, (x, tx.init(x)), length=20)

    (_, state), path = run(x)
    expected, damping, rejections, negative = moller(np.asarray(x), 20)
    # Roundings grow with the condition of the valley, 2500.
    np.testing.assert_allclose(path, expected, rtol=1e-7, atol=1e-9)
    found = diagnostics(state)
    np.testing.assert_allclose(found["damping"], damping, rtol=1e-6)
    assert rejections > 0
    assert negative > 0
    assert found["num_trials"] == 20 + rejections
    assert found["num_curvature_skips"] == negative
    assert found["num_rejected"] == 0


def test_is_linear_conjugate_gradients_on_a_quadratic(x64):
    a = jnp.diag(jnp.array([1.0, 3.0, 9.0])) + 0.2
    f = lambda x: 0.5 * x @ a @ x
    tx = optax.chain(
        scale_by_nlcg("ls"),
        scale_by_scaled_cg_step(initial_damping=0.0),
        optax.scale_by_learning_rate(1.0),
    )
    x = jnp.array([1.0, -1.0, 2.0])
    state = tx.init(x)
    update = jax.jit(lambda x, s: tx.update(a @ x, s, x, value_fn=f))
    for _ in range(3):
        updates, state = update(x, state)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(x, 0, atol=1e-12)
    np.testing.assert_allclose(diagnostics(state)["reduction_ratio"], 1, rtol=1e-9)


def test_fallbacks_are_counted(x64):
    f = lambda x: jnp.sum(x**2)
    tx = scale_by_scaled_cg_step(max_trials=3)
    x = jnp.array([1.0, 2.0])
    update = jax.jit(lambda u, s: tx.update(u, s, x, value_fn=f))
    _, state = update(2 * x, tx.init(x))
    assert diagnostics(state)["num_trials"] == 1
    damping = diagnostics(state)["damping"]
    for u, names in (
        ([0.0, 0.0], {"num_zero_directions"}),
        ([jnp.nan, 0.0], {"num_curvature_skips"}),
    ):
        updates, after = update(jnp.array(u), state)
        np.testing.assert_array_equal(updates, 0)
        changed = {
            name
            for name, value in diagnostics(after).items()
            if name.startswith("num_") and value != diagnostics(state)[name]
        }
        assert changed == names
        assert diagnostics(after)["damping"] == damping
    # A cliff at every distance: no trial is good.
    cliff = lambda x: jnp.where(x[0] < 1, 1e3, 0.0) + 3 * x[0] + x[0] ** 2
    updates, state = tx.update(jnp.array([1.0, 0.0]), tx.init(x), x, value_fn=cliff)
    np.testing.assert_array_equal(updates, 0)
    found = diagnostics(state)
    assert (found["num_rejected"], found["num_trials"]) == (1, 3)
    # Every trial of a ratio below -10 adds eleven times δ: a factor of 12 each.
    np.testing.assert_allclose(found["damping"], 2 * (12.0**3 - 1), rtol=1e-5)


def test_the_step_size_is_kept_between_measurements(x64):
    f = lambda x: jnp.sum(x**2)
    tx = scale_by_scaled_cg_step("gauss_newton", refresh_period=2)
    x = jnp.array([1.0, 2.0])
    extras = {"outputs_fn": lambda p: p, "output_loss_fn": f}
    updates, state = tx.update(2 * x, tx.init(x), x, **extras)
    np.testing.assert_allclose(updates, x, rtol=1e-6)
    updates, state = tx.update(x, state, x, **extras)
    np.testing.assert_allclose(updates, 0.5 * x, rtol=1e-6)
    assert diagnostics(state)["num_trials"] == 1


def test_bad_input():
    with pytest.raises(ValueError, match="curvature='x' is unknown"):
        scale_by_scaled_cg_step("x")
    with pytest.raises(ValueError, match="initial_damping=-1 must be finite"):
        scale_by_scaled_cg_step(initial_damping=-1)
    with pytest.raises(ValueError, match="max_trials=0 must be an integer"):
        scale_by_scaled_cg_step(max_trials=0)
    with pytest.raises(ValueError, match="refresh_period=0 must be an integer"):
        scale_by_scaled_cg_step(refresh_period=0)
    x, tx = jnp.ones(2), scale_by_scaled_cg_step()
    with pytest.raises(ValueError, match="update needs `value_fn`"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="update needs `value`"):
        tx.update(x, tx.init(x), x, hvp_fn=lambda p, v: v, grad=x, value_fn=jnp.sum)
