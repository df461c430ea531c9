"""Searches that cannot begin: values or gradients that are not finite, and minima."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics, nlcg


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_value_that_is_not_finite_is_one_failed_search_and_no_more(bad):
    def fun(x):
        terms = jnp.logspace(0, 3, 10) * (x - 1) ** 2 + (x - 1) ** 4
        return 100.0 + jnp.sum(terms)

    tx = nlcg(rule="hs+")

    @jax.jit
    def step(x, state, spoil):
        value, grad = jax.value_and_grad(fun)(x)
        value = jnp.where(spoil, bad, value)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=fun)
        return optax.apply_updates(x, updates), state

    x = jnp.zeros(10)
    state = tx.init(x)
    for t in range(60):
        x, state = step(x, state, t == 2)
        assert jnp.all(jnp.isfinite(jnp.stack(state[-1].error)))
    found = state[-1]
    assert found.diagnostics.num_failed_searches == 1
    assert found.error.growth == 1
    # The average of the values is near the last ones.
    np.testing.assert_allclose(found.error.average, 100, rtol=1e-2)
    assert jnp.max(jnp.abs(x - 1)) < 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_gradient_that_is_not_finite_does_not_come_back_from_the_state(bad):
    def rosenbrock(x):
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    tx = nlcg()
    value_and_grad = optax.value_and_grad_from_state(rosenbrock)

    @jax.jit
    def step(x, state, spoil):
        value, grad = value_and_grad(x, state=state)
        grad = grad * jnp.where(spoil, bad, 1)
        updates, state = tx.update(
            grad, state, x, value=value, grad=grad, value_fn=rosenbrock
        )
        return optax.apply_updates(x, updates), state

    x = jnp.array([-1.2, 1.0])
    state = tx.init(x)
    for t in range(40):
        before, (x, state) = (x, state[-1]), step(x, state, t in (0, 5))
        if t in (0, 5):
            np.testing.assert_array_equal(x, before[0])
            np.testing.assert_array_equal(state[-1].grad, before[1].grad)
            assert float(state[-1].value) == float(before[1].value)
    assert int(diagnostics(state)["num_skips"]) == 2
    np.testing.assert_allclose(x, 1, atol=1e-3)


def test_eager_searches_from_a_minimum_raise_no_alarm():
    """There value, slope and step are zero, and so are parameters."""

    def fun(x):
        return jnp.sum(x**2)

    tx, x = nlcg(), jnp.zeros(2)
    with jax.debug_nans(True):
        updates, _ = tx.update(
            x, tx.init(x), x, value=jnp.zeros([]), grad=x, value_fn=fun
        )
    np.testing.assert_array_equal(updates, 0)


def test_a_search_that_cannot_begin_says_nothing_about_rounding():
    def fun(x):
        return 1.0 + jnp.sum(x**2)

    tx = nlcg()
    x = jnp.zeros(2)  # the minimum: slopes are zero
    state = tx.init(x)
    for _ in range(4):
        value, grad = jax.value_and_grad(fun)(x)
        _, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=fun)
    assert state[-1].error.growth == 1
