"""`fill_masked`: functions of masked trees see the full one."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import fill_masked, hessian_vector_product
from nlcg_optax.wrappers.extra_args import bind_extra_args


def loss(params):
    x = jnp.concatenate([params["a"], jnp.ravel(params["b"])])
    return jnp.sum(jnp.exp(x)) * jnp.sum(x**2)


def test_masked_leaves_are_filled_from_the_full_tree(x64):
    params = {"a": jnp.array([0.3, -0.7]), "b": jnp.array([[1.1, 0.4]])}
    vector = {"a": jnp.array([2.0, -1.0]), "b": jnp.array([[0.5, 3.0]])}
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


def test_masked_functions_still_get_extra_arguments_by_name():
    full = {"a": jnp.float32(2.0), "b": jnp.float32(3.0)}
    f = fill_masked(lambda p, *, scale=1.0: scale * p["a"] * p["b"], full)
    bound = bind_extra_args(f, {"scale": 10.0, "other": 0.0})
    assert bound({"a": jnp.float32(1.0), "b": optax.MaskedNode()}) == 30.0


def test_bad_input():
    with pytest.raises(TypeError, match="value_fn=None must be callable"):
        fill_masked(None, {})
