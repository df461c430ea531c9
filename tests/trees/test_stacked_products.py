"""Products with stacked trees against dense matrices in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax.trees.stacked_products import SMALL_LEAF, combination, stacked_vdots


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("columns", [1, SMALL_LEAF, SMALL_LEAF + 1])
def test_stacked_trees_on_both_sides_of_a_small_leaf(dtype, columns):
    rng = np.random.default_rng(3)

    def draw(*shape):
        x = rng.normal(size=(2, *shape))
        return jnp.asarray(x[0] + 1j * x[1] if dtype == jnp.complex64 else x[0], dtype)

    stack = {"w": draw(4, 2, columns), "b": draw(4)}
    tree = {"w": draw(2, columns), "b": draw()}
    coefficients = jnp.asarray(rng.normal(size=4), jnp.float32)

    wide = np.complex128 if dtype == jnp.complex64 else np.float64
    rows = np.concatenate(
        [np.asarray(stack[k], wide).reshape(4, -1) for k in ("w", "b")], axis=1
    )
    flat = np.concatenate([np.asarray(tree[k], wide).ravel() for k in ("w", "b")])
    # Sums of up to n float32 products, of which a complex one has two.
    units = 4 * (2 * columns + 1) * 2.0**-24
    error = np.abs(stacked_vdots(stack, tree) - (rows.conj() @ flat).real)
    assert (error <= units * (np.abs(rows) @ np.abs(flat))).all()
    combined = combination(coefficients, stack)
    expected = np.asarray(coefficients, np.float64) @ rows
    got = np.concatenate([np.ravel(combined[k]) for k in ("w", "b")])
    bound = np.abs(np.asarray(coefficients)) @ np.abs(rows)
    assert (np.abs(got - expected) <= 16 * 2.0**-24 * bound).all()
