"""Trees as real coordinates: which become vectors, and that nothing gets lost."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax.minimization.coordinates import LONGEST_VECTOR, MULTIPLE, coordinates_of

TREE = {
    "matrix": jnp.arange(6.0).reshape(2, 3),
    "number": jnp.float32(7.0),
    "complex": jnp.array([8.0 + 9.0j], jnp.complex64),
    "empty": jnp.zeros([0, 2]),
}


def test_a_small_tree_is_one_vector_and_comes_back():
    coordinates = coordinates_of(TREE, may_be_vector=True)
    u = coordinates.of(TREE)
    rest = [0] * (MULTIPLE - 9)
    np.testing.assert_array_equal(u, [8, 9, 0, 1, 2, 3, 4, 5, 7, *rest])  # by key
    back = coordinates.tree(u)
    chex.assert_trees_all_equal(back, TREE)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, TREE)


def test_a_single_array_is_itself():
    x = jnp.arange(6.0).reshape(2, 3)
    coordinates = coordinates_of(x, may_be_vector=True)
    np.testing.assert_array_equal(coordinates.of(x), x.ravel())
    np.testing.assert_array_equal(coordinates.tree(coordinates.of(x)), x)


def test_kept_apart_only_the_complex_arrays_change():
    coordinates = coordinates_of(TREE, may_be_vector=False)
    u = coordinates.of(TREE)
    chex.assert_trees_all_equal(
        u, {**TREE, "complex": (jnp.array([8.0]), jnp.array([9.0]))}
    )
    chex.assert_trees_all_equal(coordinates.tree(u), TREE)


@pytest.mark.parametrize(
    ("tree", "is_vector"),
    [
        ({"a": np.zeros(LONGEST_VECTOR - 1, np.float32), "b": np.float32(0)}, True),
        ({"a": np.zeros(LONGEST_VECTOR, np.float32), "b": np.float32(0)}, False),
        ({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float16)}, False),
        ({"a": np.zeros(2, np.complex64), "b": np.zeros(2, np.float32)}, True),
        ({}, False),
    ],
)
def test_what_becomes_a_vector(tree, is_vector):
    assert coordinates_of(tree, may_be_vector=True).is_vector == is_vector


@pytest.mark.devices
def test_explicitly_sharded_arrays_are_kept_apart():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = (jnp.zeros(8), jnp.zeros(8))
    with jax.set_mesh(mesh):
        assert not coordinates_of(x, may_be_vector=True).is_vector
    assert coordinates_of(x, may_be_vector=True).is_vector
