"""Proves that Optax's line searches give the step size, and share the extras."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import nlcg, only_extra_args, scale_by_diagonal_secant, scale_by_nlcg
from nlcg_optax.paper import scale_by_loss_ratio
from tests.contract.running import each_row, make_step, small_loss, small_params
from tests.contract.table import BY_NAME, SEARCH_EXTRAS

# The Hager-Zhang search bounds the slope, and Optax's two the value.
each_search = each_row(
    names=("search", "search_secant", "zoom", "backtracking", "backtracking_rms")
)


@each_search
def test_every_step_satisfies_the_conditions_of_the_search(row):
    tx = row.make()
    step = jax.jit(make_step(row, tx, small_loss))
    value_and_grad = jax.jit(jax.value_and_grad(small_loss))
    params, state = small_params(), tx.init(small_params())
    for _ in range(6):
        value, grad = value_and_grad(params)
        new_params, state = step(params, state)
        new_value, new_grad = value_and_grad(new_params)
        move = optax.tree.sub(new_params, params)
        slope, new_slope = optax.tree.vdot(move, grad), optax.tree.vdot(move, new_grad)
        assert slope < 0
        # Armijo's condition at Optax's default of 1e-4, up to roundings of the loss.
        assert new_value <= value + 1e-4 * slope + 1e-6 * abs(value)
        if row.name.startswith(("search", "zoom")):
            assert new_slope >= 0.1 * slope - 1e-6
        if row.name == "zoom":  # strong Wolfe
            assert new_slope <= 0.1 * abs(slope) + 1e-6
        params = new_params


@each_search
def test_value_and_grad_from_state_reads_the_search(row):
    """It finds one `value` and one `grad` in the state, and they are the right ones."""
    tx = row.make()
    stored = optax.value_and_grad_from_state(small_loss)
    params, state = small_params(), tx.init(small_params())

    @jax.jit
    def step(params, state):
        value, grad = stored(params, state=state)
        updates, state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=small_loss
        )
        return optax.apply_updates(params, updates), state, value, grad

    direct = jax.jit(jax.value_and_grad(small_loss))
    for _ in range(4):
        expected_value, expected_grad = direct(params)
        params, state, value, grad = step(params, state)
        np.testing.assert_allclose(value, expected_value, rtol=1e-5)
        chex.assert_trees_all_close(grad, expected_grad, rtol=1e-4, atol=1e-5)
    # What the search stored is the loss where it went, so nothing is computed twice.
    np.testing.assert_allclose(
        optax.tree.get(state, "value"), small_loss(params), rtol=1e-5
    )


def test_value_and_grad_from_state_with_every_state_of_ours_in_the_chain():
    tx = optax.chain(
        scale_by_nlcg(
            "hz", preconditioner=scale_by_diagonal_secant(), beta_min=-jnp.inf
        ),
        scale_by_loss_ratio("online"),
        optax.scale(-1.0),
        optax.scale_by_backtracking_linesearch(20, store_grad=True),
    )
    stored = optax.value_and_grad_from_state(small_loss)
    params, state = small_params(), tx.init(small_params())
    for _ in range(2):
        value, grad = stored(params, state=state)
        np.testing.assert_allclose(value, small_loss(params), rtol=1e-5)
        updates, state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=small_loss
        )
        params = optax.apply_updates(params, updates)
    assert optax.tree.get(state, "learning_rate") > 0


@pytest.mark.parametrize(
    "search",
    [
        optax.scale_by_backtracking_linesearch(20),
        optax.scale_by_zoom_linesearch(30, initial_guess_strategy="one"),
    ],
    ids=["backtracking", "zoom"],
)
def test_a_search_in_a_chain_by_hand_is_the_alias(search):
    by_hand = optax.chain(
        scale_by_nlcg("pr+", beta_max=jnp.inf), optax.scale(-1.0), search
    )
    alias = nlcg(linesearch=search)
    row = BY_NAME["search"]
    params = small_params()
    one, other = (params, by_hand.init(params)), (params, alias.init(params))
    step, alias_step = (
        jax.jit(make_step(row, tx, small_loss)) for tx in (by_hand, alias)
    )
    for _ in range(3):
        one, other = step(*one), alias_step(*other)
    chex.assert_trees_all_equal(one[0], other[0])
    assert small_loss(one[0]) < small_loss(params)


def test_linear_conjugate_gradients_appear_on_a_quadratic():
    """A quadratic in five dimensions takes about five steps; descent takes far more."""
    curvatures = jnp.array([1.0, 3.0, 10.0, 30.0, 100.0])

    def loss(x):
        return 0.5 * jnp.sum(curvatures * x**2)

    row = BY_NAME["search"]

    def after(tx, steps):
        step = jax.jit(make_step(row, tx, loss))
        carry = (jnp.ones(5), tx.init(jnp.ones(5)))
        for _ in range(steps):
            carry = step(*carry)
        return float(loss(carry[0]) / loss(jnp.ones(5)))

    exact = optax.scale_by_zoom_linesearch(
        50, curv_rtol=1e-3, initial_guess_strategy="one"
    )
    # With slopes to 1e-3 instead of exact ones a few steps more than five are needed.
    assert after(nlcg(linesearch=exact), 8) < 1e-6
    assert after(nlcg(rule=0.0, linesearch=exact), 8) > 1e-3


def test_only_extra_args_lets_a_search_live_with_other_extras():
    search = optax.scale_by_backtracking_linesearch(20)
    direction = scale_by_nlcg("pr+", beta_max=jnp.inf)
    bare = optax.chain(direction, optax.scale(-1.0), search)
    wrapped = optax.chain(
        direction, optax.scale(-1.0), only_extra_args(search, SEARCH_EXTRAS)
    )
    params = small_params()
    value, grad = jax.value_and_grad(small_loss)(params)
    extra_args = {"value": value, "grad": grad, "value_fn": small_loss}
    with pytest.raises(TypeError):
        bare.update(grad, bare.init(params), params, **extra_args, epoch=3)
    expected, _ = bare.update(grad, bare.init(params), params, **extra_args)
    updates, _ = wrapped.update(
        grad, wrapped.init(params), params, **extra_args, epoch=3
    )
    chex.assert_trees_all_equal(updates, expected)


def test_data_reach_the_loss_of_the_search_and_of_the_curvature():
    """Extras that ``value_fn`` takes are bound to it in both places."""

    def loss(params, scale):
        return scale * small_loss(params)

    tx = nlcg(preconditioner=scale_by_diagonal_secant(secant="hvp"))
    params = small_params()

    def run(value_fn, **data):
        @jax.jit
        def step(params, state):
            value, grad = jax.value_and_grad(value_fn)(params, **data)
            updates, state = tx.update(
                grad, state, params, value=value, grad=grad, value_fn=value_fn, **data
            )
            return optax.apply_updates(params, updates), state

        carry = (params, tx.init(params))
        for _ in range(3):
            carry = step(*carry)
        return carry

    with_data = run(loss, scale=3.0)
    closed_over = run(lambda params: 3.0 * small_loss(params))
    chex.assert_trees_all_close(with_data[0], closed_over[0], rtol=1e-5, atol=1e-6)
    assert optax.tree.get(with_data[1], "num_secants") == 2
