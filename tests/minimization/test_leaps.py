"""Steps of `minimize` that leap over a minimum to where no slope is left.

The first trial step changes the parameters by all of themselves, and a search may go
a thousand times as far. Beyond a peak or a well every derivative vanishes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import minimize

PLACES = np.linspace(0.0, 100.0, 201)


def well(x):
    return 1 - jnp.exp(-(x**2) / 2)


def peak(p):
    """The misfit of a peak at p to one at 70, two wide."""
    places = PLACES.astype(p.dtype)

    def curve(center):
        return 2 * jnp.exp(-(((places - center) / 2) ** 2) / 2)

    return jnp.sum((curve(p) - curve(70.0)) ** 2)


@pytest.mark.parametrize("method", ["limited-memory", "hs+"])
def test_a_leap_over_a_peak_is_taken_back(method):
    starts = jnp.array([60.0, 64.0, 66.0, 74.0, 76.0])
    result = jax.vmap(lambda start: minimize(peak, start, method=method))(starts)
    np.testing.assert_allclose(result.x, 70, rtol=1e-6)
    assert bool(jnp.all(result.success))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_plateau_as_high_as_the_start_is_no_minimum(precision, request):
    if precision == "float64":
        request.getfixturevalue("x64")
    starts = jnp.array([5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0])
    result = jax.vmap(lambda start: minimize(well, start))(starts)
    np.testing.assert_allclose(result.x, 0, atol=1e-6)
    np.testing.assert_allclose(result.fun, 0, atol=1e-12)
    assert bool(jnp.all(result.success))


def test_a_leap_to_zero_is_one():
    """The first trial step moves the parameter by all of itself."""
    starts = jnp.array([76.0, 80.0])
    result = jax.vmap(lambda start: minimize(lambda x: well(x - 70), start))(starts)
    np.testing.assert_allclose(result.x, 70, rtol=1e-6)
    np.testing.assert_allclose(result.fun, 0, atol=1e-12)


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e8])
def test_beside_a_large_offset_a_leap_to_the_minimum_costs_little(offset):
    """Where the value does not show its fall, shorter steps lead there."""
    places = jnp.array([3.0, 3.0, 1e-4, 1e-4])
    starts = jnp.array([0.0, 1.0, 0.0, 1.0])

    def solve(place, start):
        return minimize(lambda x: offset + (x - place) ** 2, start)

    result = jax.vmap(solve)(places, starts)
    np.testing.assert_allclose(result.x, places, rtol=1e-6)
    assert bool(jnp.all(result.success))
    assert jnp.max(result.ngev) <= 20


def test_a_leap_to_a_minimum_is_one():
    """Along a parabola the first step is exact, and the gradient there is zero."""
    result = minimize(lambda x: jnp.sum((x - 3) ** 2), jnp.ones(2))
    np.testing.assert_array_equal(result.x, 3)
    assert result.success
    assert result.nit == 1
