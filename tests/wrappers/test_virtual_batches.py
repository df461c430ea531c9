"""`virtual_batch`: k micro-batches make the step of the one big batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import nlcg, paper_nlcg, split_parameters, virtual_batch

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 12, 3)), RNG.normal(size=(8, 12))


def loss(w, x, y):
    return jnp.mean((x @ w - y) ** 2)


def test_equals_the_big_batch_including_the_loss_control(x64):
    big, small = paper_nlcg(0.3), virtual_batch(paper_nlcg(0.3), 4)
    grads = jax.jit(jax.value_and_grad(loss))
    w_big = w_small = jnp.array([1.0, -1.0, 2.0])
    s_big, s_small = big.init(w_big), small.init(w_small)
    update_big, update_small = jax.jit(big.update), jax.jit(small.update)
    for x, y in zip(X, Y):
        value, g = grads(w_big, x, y)
        updates, s_big = update_big(g, s_big, w_big, value=value)
        w_big = optax.apply_updates(w_big, updates)
        for i in range(0, 12, 3):
            value, g = grads(w_small, x[i : i + 3], y[i : i + 3])
            updates, s_small = update_small(g, s_small, w_small, value=value)
            if i < 9:
                np.testing.assert_array_equal(updates, 0)
            w_small = optax.apply_updates(w_small, updates)
        # The mean loss is accumulated in float32: 2^-24, into a table of thresholds.
        np.testing.assert_allclose(w_small, w_big, rtol=1e-6)
    inner = s_small.inner_state
    chex.assert_trees_all_close(inner, s_big, rtol=1e-5, atol=1e-6)
    assert s_small.count == 8


@pytest.mark.parametrize("poison", ["gradient", "value"])
def test_bad_micro_batch_is_left_out(poison):
    tx = virtual_batch(optax.sgd(1.0), 2)
    params = jnp.zeros(2)
    state = tx.init(params)
    good = [(jnp.array([1.0, 2.0]), 1.0), (jnp.array([3.0, 0.0]), 3.0)]
    bad_grad = jnp.array([jnp.nan, 0.0]) if poison == "gradient" else jnp.ones(2)
    bad = (bad_grad, jnp.inf if poison == "value" else 1e6)
    total = jnp.zeros(2)
    for g, value in (good[0], bad, good[1]):
        updates, state = tx.update(g, state, params, value=value)
        total += updates
    np.testing.assert_array_equal(total, [-2.0, -1.0])
    chex.assert_tree_all_finite((state.mean_value, state.mean_grad))
    assert state.count == 1
    assert state.diagnostics.num_micro_batch_skips == 1


def test_a_bad_part_is_left_out_with_all_other_parts():
    """Otherwise the devices would take their steps, and sum over them, at odds."""
    tx = split_parameters(virtual_batch(nlcg(1.0, "fr"), 2), "x")
    grads = jnp.arange(1.0, 7.0).reshape(3, 2, 1).at[1, 0].set(jnp.nan)

    def run(grads):
        def step(state, grad):
            updates, state = tx.update(grad, state, grad)
            return state, updates

        state, updates = jax.lax.scan(step, tx.init(grads[0]), grads)
        return updates, state.count, state.diagnostics.num_micro_batch_skips

    updates, counts, skips = jax.vmap(run, in_axes=1, axis_name="x")(grads)
    np.testing.assert_array_equal(updates[..., 0], [[0, 0, -3], [0, 0, -4]])
    np.testing.assert_array_equal(counts, [1, 1])
    np.testing.assert_array_equal(skips, [1, 1])


def test_real_and_complex_parameters_are_averaged_together():
    params = {"a": jnp.zeros(1), "z": jnp.zeros(1, jnp.complex64)}
    tx = virtual_batch(optax.sgd(1.0), 2)
    state = tx.init(params)
    for g in (1.0, 3.0):
        grad = {"a": jnp.full(1, g), "z": jnp.full(1, g * 1j, jnp.complex64)}
        updates, state = tx.update(grad, state, params)
    chex.assert_trees_all_equal(
        updates, {"a": jnp.array([-2.0]), "z": jnp.array([-2j], jnp.complex64)}
    )


def test_mean_loss_reaches_the_inner_transformation():
    seen = []

    def spy(updates, state, params=None, *, value, **extra):
        seen.append(float(value))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), spy)
    tx = virtual_batch(inner, 3)
    state = tx.init(jnp.zeros(1))
    with jax.disable_jit():
        for value in (1.0, 2.0, 6.0, 10.0, 11, 11):
            _, state = tx.update(jnp.ones(1), state, value=value)
    assert seen[2] == 3.0  # the third is the one that counts
    assert seen[3] == 10.0  # and then the mean starts anew
    assert seen[4] == 10.5  # which of integers is none


def test_bad_arguments():
    with pytest.raises(ValueError, match="micro_batches=0 must be an integer"):
        virtual_batch(optax.sgd(0.1), 0)
    with pytest.raises(TypeError, match="tx=0.1 is a float"):
        virtual_batch(0.1, 2)
    tx = virtual_batch(optax.sgd(0.1), 2)
    with pytest.raises(ValueError, match=r"real scalar `value`.*shape \(3,\)"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=jnp.ones(3))
