"""Sums of several lists at once: numbers, kernels, derivatives, where they are used."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax.trees.inner_products import products_and_maxima, vdots
from nlcg_optax.xla import switch
from nlcg_optax.xla.joint_reductions import (
    LONGEST_ROW,
    LONGEST_RUN,
    SHARING,
    larger,
    reductions,
)

# Vectors, scalars, rows of one axis and of several, no good rows, nothing at all.
SHAPES = [
    *[(7,), (7,), (), (LONGEST_ROW + 1,), (40, 48), (3, 3, 4, 40), (5, 8, 3, 3)],
    *[(LONGEST_ROW + 1, 32), (1, LONGEST_ROW + 1), (2, 3), (0, 4), (0,)],
    *[(LONGEST_RUN + 1,), (2, LONGEST_RUN + 1), (300, 2, 500)],
    *[(40, 48)] * (SHARING + 1),
]


def sums(xs):
    return reductions(xs, [jax.lax.add] * len(xs), xs[0][0].dtype)


def lists(count, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [[rng.normal(size=s).astype(dtype) for s in SHAPES] for _ in range(count)]


@pytest.mark.parametrize("count", [1, 3])
def test_sums_are_those_of_numpy(count):
    given = lists(count)
    for value, arrays in zip(jax.jit(sums)(given), given, strict=True):
        exact = sum(np.sum(x, dtype=np.float64) for x in arrays)
        scale = sum(np.sum(np.abs(x), dtype=np.float64) for x in arrays)
        # Random signs: the root of the longest run, in units of the absolute sum.
        assert abs(float(value) - exact) < np.sqrt(LONGEST_RUN) * 2**-24 * scale


@pytest.mark.parametrize("shape", [(8192,), (8191,), (1024, 1024), (3, 3, 512, 512)])
def test_sums_of_equal_numbers_are_within_the_margin_of_a_direction(shape):
    x = jnp.full(shape, 0.1)
    exact = x.size * float(np.float32(0.1) ** 2)
    for value in jax.jit(lambda x: vdots([(x, x), (x, x)]))(x):
        assert abs(float(value) / exact - 1) < 64 * 2**-23


def test_largest_elements_beside_sums():
    x, y = (dict(enumerate(arrays)) for arrays in lists(2))
    (x_y,), maxima = jax.jit(lambda x, y: products_and_maxima([(x, y)], [x, y]))(x, y)
    products = [np.sum(np.float64(x[k]) * y[k]) for k in x]
    np.testing.assert_allclose(x_y, sum(products), atol=1.0)  # of 1e5 random ones
    for value, tree in zip(maxima, (x, y), strict=True):
        assert value == max(np.max(np.abs(v), initial=0) for v in tree.values())


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    "shape", [(5,), (LONGEST_RUN + 1,), (40, 48), (LONGEST_ROW + 1, 32)]
)
def test_what_is_not_a_number_is_not_lost(plain, shape):
    y = jnp.ones(shape)

    @jax.jit
    def maxima(x):
        with switch.plain_twins() if plain else contextlib.nullcontext():
            return products_and_maxima([(y, y)], [x, jnp.abs(x)])[1]

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
        return reductions([[jnp.abs(x)], [x]], reducers, jnp.float64)[0]

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


def count_reductions(platform="cpu", **jit_options):
    x = {"w": jnp.ones([40, 48]), "b": jnp.ones([3])}
    program = jax.jit(lambda x: vdots([(x, x), (x, x)]), **jit_options).trace(x)
    text = program.lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.reduce(")


def test_inner_products_use_them_on_one_cpu_only():
    assert count_reductions("cuda") == 4  # one per leaf and product
    assert count_reductions("cpu") == 3  # rows of w, the vectors of 40 and of 3
    with switch.plain_twins():
        jax.clear_caches()
        assert count_reductions("cpu") == 4
    jax.clear_caches()


@pytest.mark.devices
def test_inner_products_of_what_may_be_split_are_plain():
    # Under `jit` the arrays may be split over the eight devices.
    assert count_reductions("cpu") == 4
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.arange(16.0)
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("x")))
    assert switch.on_one_cpu([x])
    assert not switch.on_one_cpu([x, split])
    np.testing.assert_array_equal(vdots([(split, split)] * 2), [1240.0] * 2)
