"""`scale_by_layerwise_ratio` against its formula, with the zero guard and a mask."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax.paper import scale_by_layerwise_ratio

PARAMS = {"w": jnp.array([3.0, 4.0]), "zero": jnp.zeros(2), "v": jnp.array([[2.0]])}
GRADS = {"w": jnp.array([1.0, 0.0]), "zero": jnp.ones(2), "v": jnp.array([[-8.0]])}


def test_formula_and_zero_guard():
    tx = scale_by_layerwise_ratio(0.001)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    expected_w = 0.001 * 5 / (1 + 1e-8 + 0.1 * 0.001 * 5)
    expected_v = 0.001 * 2 / (8 + 1e-8 + 0.1 * 0.001 * 2) * -8
    np.testing.assert_allclose(updates["w"], [expected_w, 0], rtol=1e-6)
    np.testing.assert_allclose(updates["v"], [[expected_v]], rtol=1e-6)
    np.testing.assert_array_equal(updates["zero"], 1)  # moves, unlike in the paper


def test_zero_gradient_stays_zero():
    tx = scale_by_layerwise_ratio()
    zeros = {name: jnp.zeros_like(p) for name, p in PARAMS.items()}
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    for leaf in updates.values():
        np.testing.assert_array_equal(leaf, 0)


def test_mask_lets_leaves_through():
    tx = scale_by_layerwise_ratio(mask={"w": True, "zero": True, "v": False})
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["v"], GRADS["v"])
    np.testing.assert_allclose(updates["w"][0], 0.005 / 1.0005, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"eta": 0.0}, "eta=0.0 must be finite and greater than 0"),
        ({"decay_coefficient": -1.0}, "decay_coefficient=-1.0 must be finite"),
        ({"eps": -1e-8}, "eps=-1e-08 must be finite and greater than 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        scale_by_layerwise_ratio(**kwargs)


def test_numpy_arrays_and_unknown_extra_arguments_are_accepted():
    tx = scale_by_layerwise_ratio(0.5, decay_coefficient=0.0)
    w, g = np.array([3.0, 4.0], np.float32), np.array([0.0, 2.0], np.float32)
    updates, _ = tx.update(g, tx.init(w), w, value=1.0)
    np.testing.assert_allclose(updates, [0.0, 2.5], rtol=1e-6)


def test_params_are_needed():
    tx = scale_by_layerwise_ratio()
    with pytest.raises(ValueError, match="update needs `params`"):
        tx.update(GRADS, tx.init(PARAMS))
