"""Arguments of the Hager-Zhang transformation: searches from one along plus one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import scale_by_hager_zhang_linesearch


def bowl(x):
    return 1 - (x - 1) + 0.8 * (x - 1) ** 2


def searched(tx, fun, state=None):
    x = jnp.ones([])
    value, grad = jax.value_and_grad(fun)(x)
    state = tx.init(x) if state is None else state
    return tx.update(x, state, x, value=value, grad=grad, value_fn=fun)[1]


# The first step is min(|x| / |d|, 2 |f| / |f'|) = 1, where f = .8: it lies below
# 1 - .1 and above 1 - .4. The minimizer is .625, where f = .6875 < 1 - .4 * .625.
@pytest.mark.parametrize(("decrease", "step"), [(0.1, 1.0), (0.4, 0.625)])
def test_a_step_has_to_decrease_the_value_sufficiently(decrease, step):
    tx = scale_by_hager_zhang_linesearch(
        sufficient_decrease=decrease, quadratic_step=False
    )
    found = searched(tx, bowl).diagnostics
    np.testing.assert_allclose(found.step_size, step, rtol=1e-6)
    assert found.num_values == 0


def test_without_an_upper_end_a_search_takes_max_evaluations():
    tx = scale_by_hager_zhang_linesearch(max_evaluations=7)
    found = searched(tx, lambda x: -x).diagnostics
    # The value at the trial step is one of the seven.
    assert (found.num_values, found.num_gradients) == (1, 6)
    assert found.num_failed_searches == 1


@pytest.mark.parametrize(("initial_step", "step"), [("one", 1.0), ("previous", 0.625)])
def test_a_later_search_begins_with_the_step_named(initial_step, step):
    first = scale_by_hager_zhang_linesearch(
        sufficient_decrease=0.4, quadratic_step=False
    )
    # A decrease of .1, the default, accepts both: the first one measured is taken.
    tx = scale_by_hager_zhang_linesearch(
        initial_step=initial_step, quadratic_step=False
    )
    found = searched(tx, bowl, searched(first, bowl)).diagnostics
    np.testing.assert_allclose(found.step_size, step, rtol=1e-6)
