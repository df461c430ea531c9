"""Large constants are held once, and the function stays what it was."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from nlcg_optax import minimize
from nlcg_optax.xla.shared_constants import share_constants

DATA = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float32)
ROWS = np.arange(1000)[::-1].copy()


def num_held(fn, *args):
    """How often the compiled program holds the data."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    return len(re.findall(r"f32\[1000,3\]\S* constant\(", text))


def in_two_places(data, x, scale):
    """A function of large data that is evaluated in two branches."""

    def first():
        return jnp.sum((data[jnp.asarray(ROWS)] @ x - 1) ** 2)

    def second():
        return jnp.sum((data[jnp.asarray(ROWS)] @ x + scale) ** 2)

    return jax.lax.cond(scale > 0, first, second)


def test_data_that_are_read_in_two_places_are_held_once():
    x, scale = jnp.ones(3), jnp.float32(2.0)

    def plain(x, scale):
        return in_two_places(jnp.asarray(DATA), x, scale)

    def shared(x, scale):
        return in_two_places(share_constants(jnp.asarray(DATA)), x, scale)

    assert num_held(plain, x, scale) == 2
    assert num_held(shared, x, scale) == 1
    np.testing.assert_allclose(jax.jit(shared)(x, scale), plain(x, scale), rtol=1e-5)


def test_only_large_floating_point_arrays_pass_the_barrier():
    tree = {"data": jnp.asarray(DATA), "rows": jnp.asarray(ROWS), "x": jnp.ones(3)}
    jaxpr = jax.make_jaxpr(share_constants)(tree)
    behind = [
        equation.invars[0].aval.shape
        for equation in jaxpr.eqns
        if equation.primitive.name == "optimization_barrier"
    ]
    assert behind == [DATA.shape]


def test_minimize_holds_the_data_of_a_fit_once():
    def loss(x):
        return jnp.sum((jnp.asarray(DATA)[jnp.asarray(ROWS)] @ x["w"] - 1) ** 2)

    x = {"w": jnp.ones(3)}
    assert num_held(lambda x: minimize(loss, x).x, x) == 1
    solution = np.linalg.lstsq(DATA[ROWS], np.ones(1000), rcond=None)[0]
    np.testing.assert_allclose(minimize(loss, x).x["w"], solution, atol=1e-4)
