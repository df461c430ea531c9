"""Proves that no loss or gradient that is not finite reaches a state."""

import chex
import jax
import jax.numpy as jnp

from tests.contract.running import KEY, each_row, extra_args, small_loss, small_params

# What keeps the last gradient as it is makes nothing of one that is not finite; see
# tests of these parts.
KEEPS_IT = {
    "limited_memory alone": "the next update takes no pair",
    "hager_zhang of L-BFGS": "Optax's memory takes every gradient",
    **dict.fromkeys(
        ("zoom", "backtracking", "backtracking_rms"), "a search of Optax's keeps it"
    ),
}


@each_row(without=KEEPS_IT, fast=KEY)
def test_nothing_that_is_not_finite_reaches_the_state(row):
    tx = row.make()

    def step(params, state, factor):
        value, grad = jax.value_and_grad(small_loss)(params)
        value, grad = jax.tree.map(lambda g: g * factor, (value, grad))
        known = extra_args(row, value, grad, small_loss)
        updates, state = tx.update(grad, state, params, **known)
        return updates, state

    step = jax.jit(step)
    params = small_params()
    _, state = step(params, tx.init(params), 1.0)
    chex.assert_tree_all_finite(state)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        chex.assert_tree_all_finite(step(params, state, bad)[1])
