"""Sums of several lists at once: numbers, kernels, derivatives, where they are used."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import nlcg, scale_by_diagonal_secant
from nlcg_optax.trees.inner_products import products_and_maxima, vdots
from nlcg_optax.xla.joint_reductions import (
    LONGEST_RUN,
    SHARING,
    joint_reductions,
    larger,
)

# Vectors, scalars, rows of one axis and of several, no good rows, nothing at all.
SHAPES = [
    *[(7,), (7,), (), (LONGEST_RUN + 1,), (40, 48), (3, 3, 4, 40), (5, 8, 3, 3)],
    *[(LONGEST_RUN + 1, 32), (1, LONGEST_RUN + 1), (2, 3), (0, 4), (0,)],
    *[(40, 48)] * (SHARING + 1),
]


def sums(xs):
    return joint_reductions(xs, [jax.lax.add] * len(xs), xs[0][0].dtype)


def lists(count, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [[rng.normal(size=s).astype(dtype) for s in SHAPES] for _ in range(count)]


@pytest.fixture
def one_device(monkeypatch):
    """As on a machine with one device; the tests have eight."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.mark.parametrize("count", [1, 3])
def test_sums_are_those_of_numpy(count):
    given = lists(count)
    for value, arrays in zip(jax.jit(sums)(given), given, strict=True):
        exact = sum(np.sum(x, dtype=np.float64) for x in arrays)
        scale = sum(np.sum(np.abs(x), dtype=np.float64) for x in arrays)
        # Random signs: the root of the longest run, in units of the absolute sum.
        assert abs(float(value) - exact) < np.sqrt(LONGEST_RUN) * 2**-24 * scale


def test_largest_elements_beside_sums(one_device):
    x, y = (dict(enumerate(arrays)) for arrays in lists(2))
    (x_y,), maxima = jax.jit(lambda x, y: products_and_maxima([(x, y)], [x, y]))(x, y)
    products = [np.sum(np.float64(x[k]) * y[k]) for k in x]
    np.testing.assert_allclose(x_y, sum(products), atol=1.0)  # of 1e5 random ones
    for value, tree in zip(maxima, (x, y), strict=True):
        assert value == max(np.max(np.abs(v), initial=0) for v in tree.values())


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("shape", [(5,), (LONGEST_RUN + 1,), (40, 48), (8193, 32)])
def test_what_is_not_a_number_is_not_lost(monkeypatch, count, shape):
    monkeypatch.setattr(jax, "device_count", lambda: count)
    y = jnp.ones(shape)
    maxima = jax.jit(lambda x: products_and_maxima([(y, y)], [x, jnp.abs(x)])[1])
    for place in (0, 4, y.size - 1):
        x = y.ravel().at[place].set(jnp.nan).reshape(shape)
        assert np.isnan(maxima(x)).all()
    assert np.isinf(maxima(x.at[x != x].set(-jnp.inf))).all()


def test_all_lists_and_three_arrays_share_a_reduction():
    x = [jnp.ones([40, 48])] * SHARING
    program = jax.jit(sums).lower([x, x, x])
    # One of the rows, one of the vectors of their sums.
    assert program.as_text().count("stablehlo.reduce(") == 2


def test_derivative_and_batch(x64):
    given = lists(2, np.float64)[0][4]

    def largest(x):
        reducers = [larger, jax.lax.add]
        return joint_reductions([[jnp.abs(x)], [x]], reducers, jnp.float64)[0]

    at = np.unravel_index(np.argmax(np.abs(given)), given.shape)
    expected = np.zeros_like(given)
    expected[at] = np.sign(given[at])
    np.testing.assert_array_equal(jax.grad(largest)(given), expected)

    def squared_norm(x):
        return sums([[x * x], [x]])[0]

    np.testing.assert_allclose(jax.grad(squared_norm)(given), 2 * given, rtol=1e-15)
    batch = jnp.stack([given, 2 * given])
    expected = np.sum(given**2) * np.array([1, 4])
    # 48 + 40 additions of positive numbers.
    np.testing.assert_allclose(
        jax.vmap(squared_norm)(batch), expected, rtol=88 * 2**-53
    )


def test_inner_products_use_them_on_one_cpu_only(monkeypatch):
    x = {"w": jnp.ones([40, 48]), "b": jnp.ones([3])}

    def reductions(platform):
        program = jax.jit(lambda x: vdots([(x, x), (x, x)])).trace(x)
        text = program.lower(lowering_platforms=(platform,)).as_text()
        return text.count("stablehlo.reduce(")

    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert reductions("cpu") == 4  # eight devices: one per leaf and product
    jax.clear_caches()
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert reductions("cuda") == 4
    assert reductions("cpu") == 3  # rows of w, the vectors of 40 and of 3


def steps(tx, gradients, params):
    state = tx.init(params)

    def step(state, grads):
        updates, state = tx.update(grads, state, params)
        return state, updates

    return jax.jit(lambda s: jax.lax.scan(step, s, gradients)[1])(state)


@pytest.mark.parametrize("rule", ["fr", "pr+", "hz"])
@pytest.mark.parametrize("secant", [False, True])
def test_updates_are_those_of_several_devices(
    x64, one_device, monkeypatch, rule, secant
):
    rng = np.random.default_rng(1)
    shapes = {"w": (40, 48), "v": (40, 48), "b": (48,), "c": (48,), "s": ()}
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
    gradients = {
        k: jnp.asarray(rng.normal(size=s) + 0.2 * rng.normal(size=(6, *s)))
        for k, s in shapes.items()
    }
    gradients["s"] = gradients["s"].at[3].set(jnp.nan)  # a step to be skipped
    preconditioner = scale_by_diagonal_secant(0.1) if secant else None
    tx = nlcg(0.1, rule, preconditioner=preconditioner)
    joint = steps(tx, gradients, params)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    chex.assert_trees_all_close(joint, steps(tx, gradients, params), rtol=1e-11)
    assert float(jnp.abs(joint["w"][3]).max()) == 0.0
    assert float(jnp.abs(joint["w"][4]).max()) > 0.0
