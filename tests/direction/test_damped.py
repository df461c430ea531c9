"""`damp_by_beta`: which leaves are multiplied by one minus the averaged β."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import damp_by_beta, nlcg, scale_by_nlcg

PARAMS = {"layer": {"w": jnp.ones([2, 2]), "b": jnp.ones(2)}, "scale": jnp.ones(3)}
MASKS = {
    "none": (None, [True, True, True]),
    "leaves": ({"layer": {"w": False, "b": True}, "scale": True}, [True, False, True]),
    "a subtree": ({"layer": False, "scale": True}, [False, False, True]),
    "a function": (
        lambda tree: jax.tree.map(lambda leaf: leaf.ndim < 2, tree),
        [True, False, True],
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_leaves_of_the_mask_are_damped(name):
    mask, damped = MASKS[name]  # in the order b, w, scale
    memory = scale_by_nlcg(0.5, beta_smoothing=0.0)
    tx = damp_by_beta(memory, mask)
    state, plain = tx.init(PARAMS), memory.init(PARAMS)
    for _ in range(2):
        updates, state = tx.update(PARAMS, state)
        expected, plain = memory.update(PARAMS, plain)
    # The direction of ones is 1, then 1 + .5.
    pairs = zip(
        jax.tree.leaves(updates), jax.tree.leaves(expected), damped, strict=True
    )
    for mine, other, is_damped in pairs:
        np.testing.assert_allclose(other, 1.5, rtol=1e-6)
        np.testing.assert_allclose(mine, other * (0.5 if is_damped else 1), rtol=1e-6)


def test_a_restart_does_not_reset_the_average_that_damps():
    tx = damp_by_beta(scale_by_nlcg(0.5, restart_period=2))
    grad, found = jnp.ones(2), []
    state = tx.init(grad)
    for _ in range(3):
        updates, state = tx.update(grad, state)
        found.append(updates)
    # The directions are 1, 1 + .5 and, restarted, 1; the averages of β are 0, .5, .5.
    expected = [[1.0] * 2, [0.75] * 2, [0.5] * 2]
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-6)


def test_each_leaf_is_damped_by_its_own_average():
    tx = damp_by_beta(scale_by_nlcg("fr", scope="per_leaf"))
    state = tx.init({"a": jnp.ones(1), "b": jnp.ones(1)})
    for a, b in ((2.0, 1.0), (1.0, 0.9)):
        grads = {"a": jnp.array([a]), "b": jnp.array([b])}
        updates, state = tx.update(grads, state)
    # β is 1/2² and .9²: .75 * (1 + .25 * 2) and .19 * (.9 + .81 * 1), where 1 - β
    # multiplies the rounding of β by .81 / .19.
    np.testing.assert_allclose(updates["a"], 1.125, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], 0.3249, rtol=4e-6)


def test_a_beta_of_one_or_more_neither_stops_nor_turns_the_direction():
    # With growing gradients FR is clipped to 1, and without a bound it is (3 / 2)².
    for beta_max, direction in ((None, 1.0 + 2.0 + 3.0), (np.inf, 3.0 + 2.25 * 6.0)):
        tx = damp_by_beta(scale_by_nlcg("fr", beta_max=beta_max, restart=None))
        state = tx.init(jnp.ones(2))
        for scale in (1.0, 2.0, 3.0):
            updates, state = tx.update(scale * jnp.ones(2), state)
        np.testing.assert_allclose(updates, 0.01 * direction, rtol=1e-6)


def test_a_mask_of_another_structure_is_refused():
    tx = damp_by_beta(scale_by_nlcg(0.5), {"layer": True, "other": True})
    with pytest.raises(ValueError, match=r"mask has the tree structure .*'other'"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_a_mask_may_be_a_tree_that_is_callable():
    """As every module of Equinox is."""

    @jax.tree_util.register_pytree_node_class
    class Module:
        def __init__(self, w, b):
            self.w, self.b = w, b

        def __call__(self, x):
            raise AssertionError("the mask was called")

        def tree_flatten(self):
            return (self.w, self.b), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

    grads = Module(jnp.ones([1, 1]), jnp.ones(1))
    mask = jax.tree.map(lambda leaf: leaf.ndim < 2, grads)
    tx = damp_by_beta(scale_by_nlcg(0.5), mask)
    _, state = tx.update(grads, tx.init(grads))
    updates, _ = tx.update(grads, state)
    assert float(updates.w[0, 0]) == 1.5
    assert float(updates.b[0]) == 0.75
    decayed = optax.inject_hyperparams(nlcg, static_args="weight_decay_mask")(
        1.0, weight_decay=0.1, weight_decay_mask=mask
    )
    updates, _ = decayed.update(grads, decayed.init(grads), grads)
    np.testing.assert_allclose(updates.w, -1.0)
    np.testing.assert_allclose(updates.b, -1.1, rtol=1e-6)
