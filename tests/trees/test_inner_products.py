"""Inner products: exact numbers, dtypes, scopes, masked leaves, complex arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax.dtypes import accumulator_dtype, compute_dtype, difference
from nlcg_optax.trees.inner_products import max_abs, products_and_maxima, vdots
from nlcg_optax.trees.split import parameters_split_over


def random_tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.normal(size=(3, 4)), dtype),
        "b": (jnp.asarray(rng.normal(size=()), dtype), jnp.ones([5], dtype)),
    }


def ravelled(tree):
    """The naive reference: everything in one float64 vector."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def test_global_scope_is_the_ravelled_dot_product():
    x, y = random_tree(0), random_tree(1)
    xy, yy = vdots([(x, y), (y, y)])
    # 18 float32 products and sums: below 18 units of rounding of the absolute sum.
    scale = np.abs(ravelled(x)) @ np.abs(ravelled(y))
    assert abs(float(xy) - ravelled(x) @ ravelled(y)) < 18 * 2**-24 * scale
    np.testing.assert_allclose(yy, ravelled(y) @ ravelled(y), rtol=18 * 2**-24)


def test_per_leaf_scope_keeps_leaf_order():
    x = {"w": jnp.array([1.0, 2.0]), "b": jnp.array([3.0]), "c": jnp.float32(4.0)}
    (products,) = vdots([(x, x)], scope="per_leaf")
    np.testing.assert_array_equal(products, [9.0, 16.0, 5.0])


def test_empty_trees():
    assert vdots([({}, {})]) == [0.0]
    assert vdots([({}, {})], scope="per_leaf")[0].shape == (0,)


def test_bfloat16_is_summed_in_float32():
    # 4096 ones: a bfloat16 sum would stop at 256.
    x = jnp.ones([4096], jnp.bfloat16)
    (product,) = vdots([(x, x)])
    assert product.dtype == jnp.float32
    assert product == 4096.0


def test_float16_products_do_not_overflow():
    x = jnp.full([2], 60000.0, jnp.float16)
    assert vdots([(x, x)])[0] == 2 * np.float32(np.float16(60000)) ** 2


def test_mixed_dtypes_use_the_widest(x64):
    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float64)}
    assert accumulator_dtype(tree) == jnp.float64
    assert vdots([(tree, tree)])[0].dtype == jnp.float64
    assert accumulator_dtype(jnp.ones(2, jnp.complex64)) == jnp.float32
    assert accumulator_dtype(jnp.ones(2, jnp.complex128)) == jnp.float64


def test_complex_product_is_that_of_the_real_twin():
    x = jnp.array([1 + 2j, -3j])
    y = jnp.array([2 - 1j, 4 + 5j])
    # Re(conj(x) y) = (1*2 + 2*-1) + (0*4 + -3*5)
    assert vdots([(x, y)])[0] == -15.0


def test_none_and_masked_leaves_are_left_out():
    x = {"a": jnp.array([2.0]), "b": None, "c": optax.MaskedNode()}
    assert vdots([(x, x)]) == [4.0]
    np.testing.assert_array_equal(vdots([(x, x)], scope="per_leaf")[0], [4.0])


def test_split_parameters_are_summed_over_devices_in_one_collective():
    shards = jnp.arange(6.0).reshape(2, 3)

    def products(x):
        with parameters_split_over("i"):
            return jnp.stack(vdots([(x, x), (x, jnp.ones_like(x))]))

    out = jax.vmap(products, axis_name="i")(shards)
    np.testing.assert_array_equal(out, [[55.0, 15.0]] * 2)
    jaxpr = str(jax.make_jaxpr(products, axis_env=[("i", 2)])(shards[0]))
    assert jaxpr.count("psum") == 1


def test_maxima_are_those_of_all_devices_and_not_a_number_if_one_is_not():
    shards = jnp.array([[1.0, -5.0], [3.0, 2.0]])

    def both(x):
        with parameters_split_over("i"):
            return products_and_maxima([(x, x)], [x, 2 * x])

    products, maxima = jax.vmap(both, axis_name="i")(shards)
    np.testing.assert_array_equal(products, [[39.0, 39.0]])
    np.testing.assert_array_equal(maxima, [[5.0, 5.0], [10.0, 10.0]])
    tree = {"z": jnp.array([3 - 4j]), "x": jnp.ones(2), "none": None}
    assert max_abs(tree) == 5.0
    assert max_abs({}) == 0.0
    assert jnp.isnan(max_abs([jnp.ones(2), jnp.array([1.0, jnp.nan])]))


def test_integer_leaf_is_named():
    with pytest.raises(TypeError, match=r"leaf \['n'\] has dtype int32"):
        vdots([({"n": jnp.arange(3)}, {"n": jnp.arange(3)})])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"differ in shape: \(3,\) and \(1,\)"):
        vdots([(jnp.ones(3), jnp.ones(1))])


def test_difference_keeps_the_digits_of_nearby_bfloat16():
    x, y = jnp.bfloat16(1.0), jnp.float32(0.999)
    assert difference(x, y) == np.float32(1.0) - np.float32(0.999)
    assert compute_dtype(jnp.bfloat16, jnp.float16) == jnp.float32
