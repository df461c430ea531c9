"""`constrain_norm`: both norms by hand, and what the recursion sees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import constrain_norm, diagnostics, scale_by_nlcg


@pytest.mark.parametrize(
    ("norm", "scope"), [("euclidean", "per_leaf"), ("slope", "global")]
)
def test_long_directions_are_shortened_and_short_ones_are_not(x64, norm, scope):
    rng = np.random.default_rng(0)
    bare = scale_by_nlcg("fr", preconditioner=optax.scale(0.5), scope=scope)
    bound = 1.5
    tx = constrain_norm(bare, bound, norm=norm)
    params = {"a": jnp.zeros(2), "b": jnp.zeros((2, 2))}
    state, bare_state = tx.init(params), bare.init(params)
    update, bare_update = jax.jit(tx.update), jax.jit(bare.update)
    shortened = 0
    for size in (1.0, 0.1, 3.0):
        g = jax.tree.map(lambda p, s=size: s * rng.normal(size=p.shape), params)
        updates, state = update(g, state)
        ascent, bare_state = bare_update(g, bare_state)
        pick = ascent if norm == "euclidean" else g
        square = sum(np.sum(np.asarray(ascent[k]) * pick[k]) for k in params)
        factor = min(1.0, bound / np.sqrt(square))
        for k in params:
            np.testing.assert_allclose(updates[k], factor * ascent[k], rtol=1e-10)
        shortened += factor < 1
        np.testing.assert_allclose(diagnostics(state)["norm_factor"], factor)
    assert diagnostics(state)["num_constrained"] == shortened
    assert 0 < shortened < 3


def test_the_bound_may_be_a_schedule_and_the_direction_a_chain():
    direction = optax.chain(optax.clip(10.0), scale_by_nlcg("fr"))
    tx = constrain_norm(direction, optax.linear_schedule(2.0, 1.0, 1))
    g = jnp.array([3.0, 4.0])
    updates, state = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, 0.4 * g, rtol=1e-6)
    updates, _ = tx.update(g, state)
    np.testing.assert_allclose(jnp.linalg.norm(updates), 1, rtol=1e-6)


def test_bad_input():
    direction = scale_by_nlcg("fr")
    with pytest.raises(TypeError, match="direction=3 is a int"):
        constrain_norm(3, 1.0)
    with pytest.raises(ValueError, match="max_norm=0.0 must be finite and greater"):
        constrain_norm(direction, 0.0)
    with pytest.raises(ValueError, match="norm='max' is unknown"):
        constrain_norm(direction, 1.0, norm="max")
    with pytest.raises(ValueError, match="holds 0 states of scale_by_nlcg"):
        constrain_norm(optax.scale_by_adam(), 1.0).init(jnp.ones(2))
