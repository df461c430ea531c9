"""`scale_by_curvature_step`: minimizers by hand, the average, refusals, the period."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics, scale_by_curvature_step, scale_by_nlcg

A = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 2.0]])


def quadratic(x):
    return 0.5 * x @ jnp.asarray(A, x.dtype) @ x


def minimizer(x, u):
    """Along -u, for the quadratic."""
    return (u @ A @ x) / (u @ A @ u)


def test_conjugate_gradients_finish_in_as_many_steps_as_dimensions(x64):
    """Learning rate one is the exact minimizer: linear CG, for both curvatures."""
    root = jnp.asarray(np.linalg.cholesky(A).T)
    extras = {
        "hessian": {"value_fn": quadratic},
        "gauss_newton": {
            "outputs_fn": lambda x: root @ x,
            "output_loss_fn": lambda z: 0.5 * jnp.sum(z**2),
        },
    }
    for kind, functions in extras.items():
        tx = optax.chain(
            scale_by_nlcg("fr"),
            scale_by_curvature_step(kind, decay=0.0),
            optax.scale_by_learning_rate(1.0),
        )

        @jax.jit
        def step(x, state, tx=tx, functions=functions):
            updates, state = tx.update(jax.grad(quadratic)(x), state, x, **functions)
            return optax.apply_updates(x, updates), state

        x = jnp.array([1.0, -2.0, 3.0])
        state = tx.init(x)
        for _ in range(3):
            x, state = step(x, state)
        np.testing.assert_allclose(x, 0, atol=1e-13)


def test_the_average_is_corrected_for_its_start_and_refreshed_by_the_period(x64):
    decay, period = 0.8, 3
    tx = scale_by_curvature_step(decay=decay, refresh_period=period)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=3))
    state, average, seen = tx.init(x), 0.0, 0
    update = jax.jit(lambda u, s: tx.update(u, s, x, value_fn=quadratic))
    for t in range(7):
        u = A @ x + 0.1 * rng.normal(size=3)
        updates, state = update(jnp.asarray(u), state)
        if t % period == 0:
            seen += 1
            average = decay * average + (1 - decay) * minimizer(x, u)
        expected = average / (1 - decay**seen)
        np.testing.assert_allclose(updates, expected * u, rtol=1e-12)
    assert seen == 3
    assert diagnostics(state)["num_curvature_skips"] == 0


def test_refused_measurements_leave_the_average_alone(x64):
    tx = scale_by_curvature_step(decay=0.5)
    saddle = lambda x: 0.5 * (x[0] ** 2 - 2 * x[1] ** 2)
    x = jnp.array([1.0, 1.0])
    update = jax.jit(lambda u, s: tx.update(u, s, x, value_fn=saddle))
    _, state = update(jnp.array([2.0, 0.0]), tx.init(x))  # slope 2, curvature 4
    assert diagnostics(state)["step_size"] == 0.5
    for u in (
        [0.0, 1.0],  # negative curvature
        [-1.0, 0.0],  # it would climb
        [jnp.nan, 0.0],
        [jnp.inf, 0.0],
        [0.0, 0.0],
    ):
        updates, state = update(jnp.array(u), state)
        np.testing.assert_array_equal(updates, 0.5 * jnp.array(u))
    found = diagnostics(state)
    assert (found["step_size"], found["minimizer"]) == (0.5, 0.5)
    assert (found["num_curvature_skips"], found["num_zero_directions"]) == (5, 1)
    _, state = update(jnp.array([1.0, 0.0]), state)  # slope 1, curvature 1
    # .5 and 1, with weights .25 and .5 over their sum.
    np.testing.assert_allclose(diagnostics(state)["step_size"], 0.625 / 0.75)


def test_negative_curvature_at_first_is_turned_over(x64):
    tx = scale_by_curvature_step(decay=0.5)
    cap = lambda x: -(x[0] ** 2)
    x = jnp.array([1.0])
    updates, state = tx.update(jnp.array([-2.0]), tx.init(x), x, value_fn=cap)
    # Slope 4 downhill, curvature -8: a step of 1/2, which is no part of the average.
    np.testing.assert_allclose(updates, [-1.0])
    assert state.num_measured == 0
    updates, _ = tx.update(jnp.array([0.0]), tx.init(x), x, value_fn=cap)
    np.testing.assert_array_equal(updates, [0.0])


def test_an_own_product_with_the_gradient(x64):
    tx = scale_by_curvature_step(decay=0.0)
    x, u = jnp.array([1.0, 2.0, 0.5]), jnp.array([1.0, 0.0, 1.0])
    damped = lambda params, v, *, damping: A @ v + damping * v
    updates, _ = tx.update(
        u, tx.init(x), x, hvp_fn=damped, grad=jnp.asarray(A @ x), damping=2.0
    )
    expected = (u @ A @ x) / (u @ A @ u + 2.0 * u @ u)
    np.testing.assert_allclose(updates, expected * u, rtol=1e-12)


def test_extra_arguments_reach_the_functions_by_name(x64):
    tx = scale_by_curvature_step("gauss_newton", decay=0.0)
    model = lambda w, images: images @ w
    squares = lambda z, *, labels: 0.5 * jnp.sum((z - labels) ** 2)
    rng = np.random.default_rng(1)
    images, labels, w, u = (
        jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (4,), (3,), (3,))
    )
    updates, _ = jax.jit(tx.update, static_argnames=("outputs_fn", "output_loss_fn"))(
        u,
        tx.init(w),
        w,
        outputs_fn=model,
        output_loss_fn=squares,
        images=images,
        labels=labels,
    )
    slope = (images @ u) @ (images @ w - labels)
    expected = abs(slope) / np.sum((images @ u) ** 2)
    np.testing.assert_allclose(updates, expected * u, rtol=1e-12)


def test_one_flat_direction_does_not_carry_the_average_away(x64):
    tx = scale_by_curvature_step(decay=0.5)
    x, u = jnp.ones(1), jnp.ones(1)
    state = tx.init(x)
    for curve in (1.0, 1e-8):  # minimizers 1 and 1e8, of which 10 counts
        f = lambda p, c=curve: jnp.sum(p + 0.5 * c * (p - 1) ** 2)
        _, state = tx.update(u, state, x, value_fn=f)
    found = diagnostics(state)
    np.testing.assert_allclose(found["step_size"], (0.25 * 1 + 0.5 * 10) / 0.75)
    np.testing.assert_allclose(found["minimizer"], 1e8)


def test_the_step_is_at_most_ten_times_the_minimizer_just_measured(x64):
    tx = scale_by_curvature_step(decay=0.5)
    x, u = jnp.ones(1), jnp.ones(1)
    state = tx.init(x)
    for curve in (1.0, 100.0):  # minimizers 1 and .01
        f = lambda p, c=curve: jnp.sum(p + 0.5 * c * (p - 1) ** 2)
        updates, state = tx.update(u, state, x, value_fn=f)
    # The average is (.25 * 1 + .5 * .01) / .75 = .34.
    np.testing.assert_allclose(updates, [0.1])
    np.testing.assert_allclose(diagnostics(state)["step_size"], 0.1)
    # The cap does not enter the average: (.125 * 1 + .25 * .01 + .5 * 1) / .875.
    f = lambda p: jnp.sum(p + 0.5 * (p - 1) ** 2)
    updates, _ = tx.update(u, state, x, value_fn=f)
    np.testing.assert_allclose(updates, [0.6275 / 0.875])


def test_bad_input():
    with pytest.raises(ValueError, match="curvature='fisher' is unknown"):
        scale_by_curvature_step("fisher")
    with pytest.raises(ValueError, match=r"decay=1.0 is not in \[0, 1\)"):
        scale_by_curvature_step(decay=1.0)
    with pytest.raises(ValueError, match="refresh_period=0 must be an integer"):
        scale_by_curvature_step(refresh_period=0)
    x = jnp.ones(2)
    for kind, extras, missing in (
        ("hessian", {}, "value_fn"),
        ("gauss_newton", {"value_fn": jnp.sum}, "outputs_fn"),
        ("gauss_newton", {"outputs_fn": lambda p: p}, "output_loss_fn"),
        ("hessian", {"hvp_fn": lambda p, v: v}, "grad"),
    ):
        tx = scale_by_curvature_step(kind)
        with pytest.raises(ValueError, match=f"update needs `{missing}`"):
            tx.update(x, tx.init(x), x, **extras)
    tx = scale_by_curvature_step()
    with pytest.raises(ValueError, match="update needs `params`"):
        tx.update(x, tx.init(x), value_fn=jnp.sum)
    with pytest.raises(TypeError, match="must return a real scalar"):
        tx.update(x, tx.init(x), x, value_fn=lambda p: p)
    with pytest.raises(TypeError, match="leaf the array itself has dtype int32"):
        tx.init(jnp.ones(2, jnp.int32))
    with pytest.raises(ValueError, match="the result of hvp_fn"):
        tx.update(x, tx.init(x), x, grad=x, hvp_fn=lambda p, v: v[:1])
