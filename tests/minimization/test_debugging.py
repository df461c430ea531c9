"""`minimize` under the debugging modes of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import Status, minimize
from tests.minimization.test_verdicts import START, fit, observations


def steep(x):  # overflows in float32 from 4.44 on
    return jnp.sum(jnp.exp(20 * x)) - 5 * jnp.sum(x) + 0 * jnp.sum((x - 1) ** 2)


def test_a_run_that_is_cut_after_an_overflow_alarms_nothing():
    with jax.debug_nans(True):
        result = minimize(steep, jnp.full(2, -3.0), max_evaluations=2)
    assert int(result.status) == Status.MAX_EVALUATIONS
    # It was cut where value and slope at the upper end have overflowed.
    assert np.isposinf(result.state.search.bracket[1, 1:]).all()


def test_a_nan_of_the_function_is_found():
    def root(x):
        return jnp.sum(jnp.sqrt(x) ** 2 + x)

    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        minimize(root, jnp.full(2, -1.0))
    # Also of its gradient alone, at zero, where the run ends with a finite value.
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        minimize(root, jnp.full(2, 1.0), max_evaluations=2)


@pytest.mark.parametrize("mode", [jax.debug_nans, jax.debug_infs])
def test_no_number_of_a_run_alarms_jaxs_debugging_modes(mode):
    y = observations(0).astype(np.float32)
    with mode(True):
        result = minimize(fit, START.astype(np.float32), args=(y,))
        assert bool(result.success)
