"""Daniel's beta: conjugate in the Hessian of the mini-batch, against dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics
from nlcg_optax.contrib import scale_by_daniel

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


def test_without_positive_curvature_beta_is_zero():
    tx, first, g = scale_by_daniel(), jnp.array([1.0, 2.0]), jnp.array([-3.0, -1.0])
    # The Hessian is `sign` times the identity: zᵀH d = 5 sign, dᵀH d = 5 sign.
    for sign, beta in ((1.0, 1.0), (0.0, 0.0), (-1.0, 0.0)):
        value_fn = lambda x, sign=sign: 0.5 * sign * x @ x
        _, state = tx.update(first, tx.init(first), first, value_fn=value_fn)
        _, state = tx.update(g, state, first, value_fn=value_fn)
        assert diagnostics(state)["beta"] == beta


def test_daniel_stores_one_tree_and_names_what_it_needs():
    params = jnp.zeros(100)
    state = jax.eval_shape(scale_by_daniel().init, params)
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 100
    tx = scale_by_daniel()
    with pytest.raises(ValueError, match="scale_by_daniel: update needs `value_fn`"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="scale_by_daniel: update needs `params`"):
        tx.update(params, tx.init(params))
