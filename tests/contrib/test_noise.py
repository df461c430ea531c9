"""Beta under noise: curvature of the same batch, and products across two halves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics, scale_by_nlcg
from nlcg_optax.contrib import scale_by_daniel, scale_by_nlcg_across_halves

DIAGONAL = np.array([0.5, 2.0, 4.0])
DIAGONAL_P = optax.stateless(lambda g, _: jax.tree.map(lambda x: x * DIAGONAL, g))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def hessian(seed):
    root = random(3, 3, seed=seed)
    return root @ root.T + np.eye(3)


def test_daniel_is_conjugate_in_the_hessian_of_the_batch(x64):
    tx = scale_by_daniel(preconditioner=DIAGONAL_P)
    x = jnp.asarray(random(3))
    state, d = tx.init(x), np.zeros(3)

    @jax.jit
    def update(state, matrix):
        def loss(x):
            return 0.5 * x @ matrix @ x

        return tx.update(jax.grad(loss)(x), state, x, value_fn=loss)

    for step in range(4):
        matrix = hessian(step)  # another batch
        updates, state = update(state, jnp.asarray(matrix))
        z = DIAGONAL * (matrix @ x)
        beta = z @ matrix @ d / (d @ matrix @ d) if step else 0.0
        if (matrix @ x) @ (beta * d - z) >= 0:
            beta = 0.0
        np.testing.assert_allclose(diagnostics(state)["beta"], beta, rtol=1e-9)
        new = -np.asarray(updates)
        if beta:
            assert abs(new @ matrix @ d) < 1e-9 * np.linalg.norm(matrix)
        d = new


def test_daniel_solves_a_quadratic_in_as_many_exact_steps_as_it_has_dimensions(x64):
    matrix = jnp.asarray(hessian(5))

    def loss(x):
        return 0.5 * x @ matrix @ x - jnp.sum(x)

    tx = scale_by_daniel(beta_min=0.0)
    x, state = jnp.zeros(3), tx.init(jnp.zeros(3))
    for _ in range(3):
        grad = jax.grad(loss)(x)
        updates, state = tx.update(grad, state, x, value_fn=loss)
        d = -updates
        x = x - (grad @ d) / (d @ matrix @ d) * d
    np.testing.assert_allclose(x, np.linalg.solve(matrix, np.ones(3)), rtol=1e-10)


@pytest.mark.parametrize("curvature", [-2.0, 0.0])
def test_daniel_without_positive_curvature_forgets_the_direction(curvature):
    tx, g = scale_by_daniel(), jnp.ones(3)

    def loss(x):  # its gradient is g only at zero, which no product reads
        return jnp.sum(x) + 0.5 * curvature * x @ x

    state = tx.init(g)
    for _ in range(2):
        updates, state = tx.update(g, state, jnp.zeros(3), value_fn=loss)
    np.testing.assert_array_equal(updates, g)


def test_daniel_keeps_one_tree_and_names_what_it_needs():
    params = jnp.zeros(100)
    tx = scale_by_daniel()
    state = jax.eval_shape(tx.init, params)
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 100
    with pytest.raises(ValueError, match="scale_by_daniel: update needs `value_fn`"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="scale_by_daniel: update needs `params`"):
        tx.update(params, tx.init(params))


RULES = {
    # From gᵀz, g_prevᵀz_prev, g_prevᵀz, dᵀg and d_prevᵀg_prev, noise left out.
    "fr": lambda p: p["g_z"] / p["g_prev_z_prev"],
    "pr+": lambda p: max((p["g_z"] - p["g_prev_z"]) / p["g_prev_z_prev"], 0),
    "hs": lambda p: (p["g_z"] - p["g_prev_z"]) / (p["d_g"] - p["d_g_prev"]),
}


@pytest.mark.parametrize("rule", RULES)
def test_products_across_halves_match_numpy(rule, x64):
    tx = scale_by_nlcg_across_halves(
        rule, preconditioner=DIAGONAL_P, beta_min=0.0, beta_max=1.0
    )
    update = jax.jit(tx.update)
    mean = random(3)
    d, d_g_prev, g_prev, rho_prev = np.zeros(3), 0.0, np.zeros(3), 1.0
    state = tx.init(jnp.zeros(3))
    betas = []
    for step in range(8):
        a, b = mean + 0.7 * random(2, 3, seed=step + 1)
        g = (a + b) / 2
        z = DIAGONAL * g
        halves = (jnp.asarray(a), jnp.asarray(b))
        updates, state = update(jnp.asarray(g), state, half_grads=halves)
        rho = max(a @ (DIAGONAL * b), 0.0)  # P is linear and symmetric here
        products = {
            "g_z": rho,
            "g_prev_z_prev": rho_prev,
            "g_prev_z": g_prev @ z,
            "d_g": d @ g,
            "d_g_prev": d_g_prev,
        }
        beta = 0.0
        if step and (rho_prev > 0 or rule == "hs"):  # 0 over 0 is 0
            beta = np.clip(RULES[rule](products), 0, 1)
        if g @ (beta * d - z) >= 0:
            beta = 0.0
        d_g_prev = -rho + beta * (d @ g)
        d, g_prev, rho_prev = beta * d - z, g, rho
        betas.append(beta)
        np.testing.assert_allclose(diagnostics(state)["beta"], beta, rtol=1e-9)
        np.testing.assert_allclose(updates, -d, rtol=1e-9)
    assert 0 < np.mean(betas) < 1


def test_the_product_across_halves_is_unbiased_and_that_of_the_mean_is_not():
    """E gᵀg is |mean|² + noise² size / 2; across the halves it is |mean|²."""
    size, runs, noise = 16, 4000, 1.0
    mean = jnp.full(size, 0.5)  # |mean|² = 4, and the noise of gᵀg is 8
    tx = scale_by_nlcg_across_halves("fr")

    def product(key):
        halves = mean[None] + noise * jax.random.normal(key, (2, size))
        g = jnp.mean(halves, 0)
        _, state = tx.update(g, tx.init(mean), half_grads=tuple(halves))
        return state.g_prev_z_prev, g @ g

    across, same = jax.vmap(product)(jax.random.split(jax.random.key(0), runs))
    # The variance of gₐᵀg_b is 2 |mean|² noise² + size noise⁴ = 24; the cut at zero,
    # below 4 / √24 = .82 deviations, adds .12 deviations of a normal variable (0.6).
    standard_error = np.sqrt(24 / runs)
    lost = 0.117 * np.sqrt(24)
    assert -5 * standard_error < np.mean(across) - 4 < lost + 5 * standard_error
    assert abs(np.mean(same) - 12) < 5 * np.sqrt(40 / runs)


def test_equal_halves_change_nothing():
    grads = [jnp.asarray(g, jnp.float32) for g in random(5, 3)]
    plain = scale_by_nlcg("pr+", preconditioner=DIAGONAL_P)
    halved = scale_by_nlcg_across_halves("pr+", preconditioner=DIAGONAL_P)
    state, halved_state = plain.init(grads[0]), halved.init(grads[0])
    for g in grads:
        one, state = plain.update(g, state)
        other, halved_state = halved.update(g, halved_state, half_grads=(g, g))
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_a_half_that_is_not_finite_skips_the_step():
    g = jnp.ones(3)
    tx = scale_by_nlcg_across_halves("pr+")
    _, state = tx.update(g, tx.init(g), half_grads=(g, g))
    bad = g.at[0].set(jnp.nan)
    updates, after = tx.update(g, state, half_grads=(g, bad))
    np.testing.assert_array_equal(updates, 0)
    assert after.diagnostics.skipped
    chex.assert_trees_all_equal(after.g_prev_z_prev, state.g_prev_z_prev)


def test_bad_halves():
    g = jnp.ones(3)
    tx = scale_by_nlcg_across_halves()
    with pytest.raises(ValueError, match="across_halves: update needs `half_grads`"):
        tx.update(g, tx.init(g), g)
    with pytest.raises(ValueError, match="must be a pair of trees"):
        tx.update(g, tx.init(g), g, half_grads=(g, g, g))
    with pytest.raises(ValueError, match=r"half_grads\[1\] has shape"):
        tx.update(g, tx.init(g), g, half_grads=(g, g[:2]))
    with pytest.raises(ValueError, match="reads .'d_pinv_d', 'y_p_y'., which"):
        scale_by_nlcg_across_halves("hz")
