"""Where the explicit mesh of an array is set, and that it is enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nlcg_optax
from nlcg_optax.xla.automatic_sharding import on_mesh_of

pytestmark = pytest.mark.devices


def _mesh(name):
    kind = jax.sharding.AxisType.Explicit
    return jax.make_mesh((2,), (name,), axis_types=(kind,), devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def split():
    return jax.device_put(
        jnp.array([1.0, -2.0]), jax.NamedSharding(_mesh("x"), jax.P("x"))
    )


def test_a_mesh_is_set_where_none_is_set_and_nothing_is_traced(split):
    def axes():
        return jax.sharding.get_abstract_mesh().axis_names

    def axes_inside(tree):
        with on_mesh_of(tree):
            return axes()

    seen = []
    jax.jit(lambda: seen.append(axes_inside(split)))()
    jax.jit(lambda x: seen.append(axes_inside(x)))(split)
    jax.vmap(lambda x: (seen.append(axes_inside(split)), x)[1])(jnp.ones(2))
    jax.grad(lambda x: (seen.append(axes_inside(split)), x)[1])(1.0)
    assert seen == [()] * 4  # where `jax.set_mesh` would raise
    assert axes_inside({"none": None, "number": 1.0, "w": split}) == ("x",)
    assert axes_inside(jnp.ones(2)) == axes() == ()
    with jax.set_mesh(_mesh("y")):
        assert axes_inside(split) == ("y",)


def test_without_set_mesh_eager_calls_run_on_that_of_the_parameters(split):
    def quartic(x):
        return jnp.sum(x**4) / 4

    product = nlcg_optax.hessian_vector_product(quartic, split, split)
    np.testing.assert_array_equal(product, 3 * np.array([1.0, -8.0]))
    found = nlcg_optax.minimize(lambda x: jnp.sum((x - 3) ** 2), split).x
    np.testing.assert_allclose(found, 3.0, rtol=1e-6)  # a parabola: one exact step
    for x in (product, found):
        assert jax.typeof(x).sharding == jax.typeof(split).sharding
