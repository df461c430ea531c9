"""Hessian-vector products against dense Hessians; masked trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import fill_masked, hessian_vector_product
from nlcg_optax.extra_args import bind_extra_args


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
    f = lambda p: jnp.sum(p["n"] * p["x"] ** 2)
    product = hessian_vector_product(f, params, vector)
    np.testing.assert_array_equal(product["x"], [6.0, 8.0])


def test_complex_product_is_that_of_the_real_twin(x64):
    def f(z):
        return jnp.sum(jnp.abs(z) ** 4) + jnp.real(z[0] * z[1] ** 2)

    def twin(x):
        return f(x[:2] + 1j * x[2:])

    z, v = jnp.array([1 + 2j, -1 + 0.5j]), jnp.array([0.3 - 1j, 2 + 1j])
    split = lambda u: jnp.concatenate([u.real, u.imag])
    expected = jax.hessian(twin)(split(z)) @ split(v)
    product = hessian_vector_product(f, z, v)
    np.testing.assert_allclose(split(product), expected, rtol=1e-12)


def test_masked_leaves_are_filled_from_the_full_tree(x64):
    params, vector = make_trees()
    masked = {"a": params["a"], "b": optax.MaskedNode()}
    direction = {"a": vector["a"], "b": optax.MaskedNode()}
    product = hessian_vector_product(fill_masked(loss, params), masked, direction)
    full = {"a": vector["a"], "b": jnp.zeros_like(vector["b"])}
    expected = hessian_vector_product(loss, params, full)["a"]
    np.testing.assert_allclose(product["a"], expected, rtol=1e-12)
    assert isinstance(product["b"], optax.MaskedNode)


def test_masked_subtrees_are_filled_too():
    full = {"a": {"x": jnp.ones(1), "y": jnp.ones(1)}, "b": jnp.ones(1)}
    f = fill_masked(lambda p: p["a"]["x"] + p["a"]["y"] + p["b"], full)
    np.testing.assert_array_equal(f({"a": optax.MaskedNode(), "b": jnp.zeros(1)}), [2])


def test_bind_extra_args_passes_only_what_is_accepted():
    bound = bind_extra_args(lambda w, x, *, y=1.0: w + x * y, {"x": 2.0, "z": 9.0})
    assert bound(1.0) == 3.0
    untouched = lambda w: w
    assert bind_extra_args(untouched, {"x": 2.0}) is untouched


def test_bad_input():
    with pytest.raises(TypeError, match="value_fn=3 must be callable"):
        hessian_vector_product(3, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"vector has shape \(3,\)"):
        hessian_vector_product(jnp.sum, jnp.ones(2), jnp.ones(3))
    with pytest.raises(TypeError, match="value_fn=None must be callable"):
        fill_masked(None, {})
