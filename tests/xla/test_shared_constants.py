"""Large constants are held once, and the function stays what it was."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from nlcg_optax import minimize
from nlcg_optax.xla.shared_constants import share_constants

DATA = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float32)
ROWS = np.arange(1000)[::-1].copy()


def residual(x, scale):
    fit = jnp.asarray(DATA)[jnp.asarray(ROWS)] @ x["w"]
    return {"sum": jnp.sum((fit - 1) ** 2), "scaled": scale * x["w"]}


def num_held(fn, *args):
    """How often the compiled program holds the data."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    return len(re.findall(r"f32\[1000,3\]\S* constant\(", text))


def test_a_function_that_is_evaluated_in_two_places_holds_its_data_once():
    x, scale = {"w": jnp.ones(3)}, jnp.float32(2.0)

    def in_two_places(fn):
        return lambda x, s: jax.lax.cond(
            s > 0, fn, lambda y, t: jax.tree.map(jnp.negative, fn(y, t)), x, s
        )

    shared = jax.jit(lambda x, s: in_two_places(share_constants(residual, x, s))(x, s))
    assert num_held(in_two_places(residual), x, scale) == 2
    assert num_held(shared, x, scale) == 1
    got, expected = shared(x, scale), residual(x, scale)
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5)


def test_only_large_floating_point_constants_leave_the_function():
    x, scale = {"w": jnp.ones(3)}, jnp.float32(2.0)
    jaxpr = jax.make_jaxpr(lambda x, s: share_constants(residual, x, s)(x, s))(x, scale)
    outside = [
        equation.invars[0].aval.shape
        for equation in jaxpr.eqns
        if equation.primitive.name == "optimization_barrier"
    ]
    assert outside == [DATA.shape]  # not the 1000 indices

    small = jnp.arange(3.0)

    def short(y):
        return y * small

    assert share_constants(short, x["w"]) is short


def test_minimize_holds_the_data_of_a_fit_once():
    def loss(x):
        return residual(x, 1.0)["sum"]

    x = {"w": jnp.ones(3)}
    assert num_held(lambda x: minimize(loss, x).x, x) == 1
    solution = np.linalg.lstsq(DATA[ROWS], np.ones(1000), rcond=None)[0]
    np.testing.assert_allclose(minimize(loss, x).x["w"], solution, atol=1e-4)
