"""Products with curvature matrices against the dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import gauss_newton_vector_product, hessian_vector_product
from nlcg_optax.curvature import value_grad_and_hessian_vector_product
from tests.curvature.network import (
    cross_entropy,
    dense_gauss_newton,
    dense_hessian,
    flat,
    logits,
    network_params,
)
from tests.curvature.network import loss as network_loss


def loss(params):
    x = jnp.concatenate([params["a"], jnp.ravel(params["b"])])
    return jnp.sum(jnp.exp(x)) * jnp.sum(x**2) + jnp.prod(jnp.sin(x))


def make_trees():
    rng = np.random.default_rng(0)
    return [
        {
            "a": jnp.asarray(rng.normal(size=2)),
            "b": jnp.asarray(rng.normal(size=(1, 2))),
        }
        for _ in range(2)
    ]


def test_equals_the_dense_hessian(x64):
    params, vector = make_trees()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda x: loss(unravel(x)))(flat)
    expected = unravel(hessian @ jax.flatten_util.ravel_pytree(vector)[0])
    for product in (
        hessian_vector_product(loss, params, vector),
        jax.jit(lambda p, v: hessian_vector_product(loss, p, v))(params, vector),
        hessian_vector_product(jax.checkpoint(loss), params, vector),
    ):
        for name in params:
            np.testing.assert_allclose(product[name], expected[name], rtol=1e-12)


def test_custom_vjp_is_supported(x64):
    """Forward over reverse: a custom_vjp has no forward rule to be reversed over."""

    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, ct: (3 * x**2 * ct,))
    product = hessian_vector_product(
        lambda x: jnp.sum(cube(x)), jnp.arange(3.0), jnp.ones(3)
    )
    np.testing.assert_allclose(product, [0, 6, 12])


def test_tangent_takes_the_dtype_of_the_parameters():
    params = jnp.array([1.0, 2.0], jnp.bfloat16)
    product = hessian_vector_product(lambda x: jnp.sum(x**2), params, jnp.ones(2))
    assert product.dtype == jnp.bfloat16
    np.testing.assert_array_equal(product.astype(np.float32), 2)


def test_integer_leaves_take_no_part():
    params = {"x": jnp.array([1.0, 2.0]), "n": jnp.array([3, 4])}
    vector = {"x": jnp.ones(2), "n": jnp.zeros(2)}
    f = lambda p: jnp.sum(p["n"].astype(float) * p["x"] ** 2)
    product = hessian_vector_product(f, params, vector)
    np.testing.assert_array_equal(product["x"], [6.0, 8.0])


def test_complex_product_is_that_of_the_real_twin(x64):
    def f(z):
        return jnp.sum(jnp.abs(z) ** 4) + jnp.real(z[0] * z[1] ** 2)

    def twin(x):
        return f(jax.lax.complex(x[:2], x[2:]))

    z, v = jnp.array([1 + 2j, -1 + 0.5j]), jnp.array([0.3 - 1j, 2 + 1j])
    split = lambda u: jnp.concatenate([u.real, u.imag])
    expected = jax.hessian(twin)(split(z)) @ split(v)
    product = hessian_vector_product(f, z, v)
    np.testing.assert_allclose(split(product), expected, rtol=1e-12)


def test_bad_input():
    with pytest.raises(TypeError, match="value_fn=3 must be callable"):
        hessian_vector_product(3, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"vector has shape \(3,\)"):
        hessian_vector_product(jnp.sum, jnp.ones(2), jnp.ones(3))


# --- Gauss-Newton, and everything in one pass ----------------------------------------


def test_gauss_newton_equals_the_materialised_matrix(x64):
    params, vector = network_params(), network_params(seed=1)
    matrix = dense_gauss_newton(logits, cross_entropy, params)
    # It is another matrix than the Hessian here, and a positive semidefinite one.
    assert np.abs(matrix - dense_hessian(network_loss, params)).max() > 0.1
    assert np.linalg.eigvalsh(matrix).min() > -1e-12
    for outputs_fn in (logits, jax.checkpoint(logits)):
        product = jax.jit(
            lambda p, v, f=outputs_fn: gauss_newton_vector_product(
                f, cross_entropy, p, v
            )
        )(params, vector)
        np.testing.assert_allclose(
            flat(product), matrix @ flat(vector), rtol=1e-10, atol=1e-12
        )


@pytest.mark.slow
def test_gauss_newton_of_complex_parameters_is_that_of_the_real_twin(
    x64, standard_promotion
):
    model = lambda z: jnp.stack([z[0] * z[1], jnp.exp(1j * z[1])])
    output_loss = lambda z: jnp.sum(jnp.abs(z - 1) ** 4)
    split = lambda u: jnp.concatenate([u.real, u.imag])
    join = lambda x: x[:2] + 1j * x[2:]
    z, v = jnp.array([1 + 2j, -1 + 0.5j]), jnp.array([0.3 - 1j, 2 + 1j])
    matrix = dense_gauss_newton(
        lambda x: split(model(join(x))), lambda y: output_loss(join(y)), split(z)
    )
    product = gauss_newton_vector_product(model, output_loss, z, v)
    np.testing.assert_allclose(split(product), matrix @ split(v), rtol=1e-10)


@pytest.mark.slow
def test_gauss_newton_under_vmap_and_in_bfloat16():
    params = network_params(jnp.float32)
    vectors = [network_params(jnp.float32, seed) for seed in (1, 2)]
    product = jax.jit(
        lambda v: gauss_newton_vector_product(logits, cross_entropy, params, v)
    )
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *vectors)
    mapped = jax.jit(jax.vmap(product))(stack)
    for i, vector in enumerate(vectors):
        mine = jax.tree.map(lambda x, i=i: x[i], mapped)
        np.testing.assert_allclose(flat(mine), flat(product(vector)), atol=1e-5)
    narrow = jax.jit(
        lambda p, v: gauss_newton_vector_product(logits, cross_entropy, p, v)
    )(network_params(jnp.bfloat16), vectors[0])
    assert {x.dtype for x in narrow.values()} == {jnp.dtype(jnp.bfloat16)}
    # Entries below one, from some hundred roundings of 8 bits.
    np.testing.assert_allclose(
        flat(narrow).astype(np.float32), flat(product(vectors[0])), atol=0.05
    )


def test_value_gradient_and_product_in_one_pass(x64):
    params, vector = network_params(), network_params(seed=1)
    out = jax.jit(
        lambda p, v: value_grad_and_hessian_vector_product(network_loss, p, v)
    )(params, vector)
    value, grad = jax.value_and_grad(network_loss)(params)
    np.testing.assert_allclose(out.value, value, rtol=1e-12)
    np.testing.assert_allclose(flat(out.grad), flat(grad), rtol=1e-12)
    np.testing.assert_allclose(out.slope, flat(grad) @ flat(vector), rtol=1e-12)
    expected = dense_hessian(network_loss, params) @ flat(vector)
    np.testing.assert_allclose(flat(out.product), expected, rtol=1e-10, atol=1e-12)


def test_bad_input_of_the_new_products():
    x = jnp.ones(2)
    with pytest.raises(TypeError, match="outputs_fn=3 must be callable"):
        gauss_newton_vector_product(3, jnp.sum, x, x)
    with pytest.raises(TypeError, match="output_loss_fn=None must be callable"):
        gauss_newton_vector_product(jnp.sum, None, x, x)
    with pytest.raises(TypeError, match="scalar"):
        gauss_newton_vector_product(lambda p: p, lambda z: z, x, x)
    with pytest.raises(ValueError, match=r"vector has shape \(3,\)"):
        value_grad_and_hessian_vector_product(jnp.sum, x, jnp.ones(3))
