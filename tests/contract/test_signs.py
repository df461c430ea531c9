"""A sign flipped by a nested transformation, or forgotten: a warning and a counter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nlcg_optax as n
from tests.contract.test_misuse import GRADS, PARAMS, loss

FLIPPED = {
    "adam": lambda: optax.adam(1e-2),
    "sgd": lambda: optax.sgd(0.1),
    "sign": lambda: optax.scale(-1.0),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", FLIPPED)
def test_a_sign_flipped_preconditioner_is_reported_at_the_first_update(name):
    tx = n.nlcg(0.1, preconditioner=FLIPPED[name]())
    state = tx.init(PARAMS)
    with pytest.warns(UserWarning, match=r"preconditioner: .*scale_by_adam\(\)"):
        updates, state = tx.update(GRADS, state, PARAMS)
    # Steepest descent, as it is documented.
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.1 * g), updates, GRADS)
    assert int(n.diagnostics(state)["num_preconditioner_skips"]) == 1
    tx.update(GRADS, state, PARAMS)  # no second warning, which would be an error


@pytest.mark.usefixtures("standard_promotion")
def test_under_jit_the_diagnostics_count_sign_flipped_steps():
    def count(preconditioner, grads, scope="global"):
        tx = n.scale_by_nlcg(preconditioner=preconditioner, scope=scope)
        step = jax.jit(tx.update)
        state = tx.init(PARAMS)
        for _ in range(3):
            _, state = step(grads, state, PARAMS)
        return int(state.diagnostics.num_preconditioner_skips)

    assert count(optax.adam(1e-2), GRADS) == 3
    assert count(optax.scale_by_adam(), GRADS) == 0
    assert count(None, GRADS) == 0
    # A gradient of zero says nothing about a preconditioner.
    assert count(optax.adam(1e-2), jax.tree.map(jnp.zeros_like, GRADS)) == 0
    one_flipped = optax.masked(optax.scale(-1e-3), {"b": True, "w": False})
    assert count(one_flipped, GRADS, scope="per_leaf") == 3


NESTED = {
    "diagonal": lambda tx: n.scale_by_kronecker(diagonal=tx),
    "diagonal, graft=False": lambda tx: n.scale_by_kronecker(diagonal=tx, graft=False),
    "vectors": lambda tx: n.scale_by_orthogonalization(vectors=tx),
    "direction": n.scale_by_slope_ratio,
}


@pytest.mark.parametrize("name", NESTED)
def test_a_sign_flipped_part_is_reported_at_the_first_update(name):
    argument = name.split(",")[0]

    def updated(tx, state):
        return tx.update(GRADS, state, PARAMS, value=jnp.float32(1.0))[1]

    def count(state):
        (found,) = (v for k, v in n.diagnostics(state).items() if "ascent" in k)
        return int(found)

    for right in (optax.scale(2.0), optax.set_to_zero()):
        tx = NESTED[name](right)
        assert count(updated(tx, tx.init(PARAMS))) == 0  # a warning is an error
    tx = NESTED[name](optax.scale(-2.0))
    jax.eval_shape(lambda s: updated(tx, s), tx.init(PARAMS))  # nor under `jit`
    with pytest.warns(UserWarning, match=rf"{argument}: .*scale_by_adam\(\)"):
        state = updated(tx, tx.init(PARAMS))
    assert count(updated(tx, state)) == 2
    # The sign of a matrix is not looked at: only its norm is taken, or nothing.
    if argument != "direction":
        matrices = {"w": GRADS["w"]}
        tx.update(matrices, tx.init(matrices), matrices)


def test_a_search_along_an_ascent_is_reported():
    tx = optax.chain(n.scale_by_nlcg(), n.scale_by_hager_zhang_linesearch())
    value, grad = jax.value_and_grad(loss)(PARAMS)
    extra_args = {"value": value, "grad": grad, "value_fn": loss}
    state = tx.init(PARAMS)
    with pytest.warns(UserWarning, match=r"put optax\.scale\(-1\.\) before it"):
        updates, after = tx.update(grad, state, PARAMS, **extra_args)
    assert all(not np.any(u) for u in jax.tree.leaves(updates))
    assert int(n.diagnostics(after)["num_ascent_directions"]) == 1
    step = jax.jit(lambda s: tx.update(grad, s, PARAMS, **extra_args)[1])
    assert int(n.diagnostics(step(step(state)))["num_ascent_directions"]) == 2
    right = n.nlcg()
    _, after = right.update(grad, right.init(PARAMS), PARAMS, **extra_args)
    assert int(n.diagnostics(after)["num_ascent_directions"]) == 0
