"""Restarts where progress stalls in the span of the last directions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax.contrib import (
    recent_directions,
    scale_by_nlcg_with_restart_memory,
)

SIZE, MEMORY = 8, 3
METRIC = np.geomspace(0.2, 5.0, SIZE)
PRECONDITIONER = optax.stateless(lambda g, _: jax.tree.map(lambda x: x * METRIC, g))


def run(tx, grads):
    state, states = tx.init(jnp.zeros(SIZE)), []
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(jnp.asarray(g), state)
        states.append((np.asarray(updates), state))
    return states


@pytest.mark.parametrize("metric", [np.ones(SIZE), METRIC])
def test_share_is_that_of_the_projection(x64, metric):
    # Directions by the recursion, gradients at random; against least squares in the
    # norm of P⁻¹, over the last three directions.
    rng = np.random.default_rng(0)
    recent = recent_directions.none_yet(jnp.zeros(SIZE), MEMORY, jnp.float64)
    directions, d = [], np.zeros(SIZE)
    for step in range(7):
        g = rng.normal(size=SIZE)
        z = metric * g
        products = recent_directions.products_with(recent, jnp.asarray(z))
        share = recent_directions.share_within(recent, products, g @ z)
        expected = 0.0
        if directions:
            basis = np.stack(directions[-MEMORY:], axis=1) / np.sqrt(metric)[:, None]
            inside = basis @ np.linalg.lstsq(basis, z / np.sqrt(metric))[0]
            expected = inside @ inside / (g @ z)
        np.testing.assert_allclose(share, expected, rtol=1e-10, atol=1e-14)
        beta = 0.0 if step == 0 else rng.normal()
        d = -z + beta * d
        directions.append(d)
        recent = recent_directions.remember(
            recent,
            jnp.asarray(g),
            jnp.float64(beta),
            products,
            jnp.float64(d @ (d / metric)),
            jnp.array(step == 0),
            jnp.array(True),
        )


@pytest.mark.parametrize("preconditioner", [None, PRECONDITIONER])
def test_restarts_at_a_gradient_within_the_last_directions(x64, preconditioner):
    metric = np.ones(SIZE) if preconditioner is None else METRIC
    grads = list(np.random.default_rng(1).normal(size=(3, SIZE)))
    kwargs = {"preconditioner": preconditioner, "restart": None}
    tx = scale_by_nlcg_with_restart_memory(0.5, memory=MEMORY, **kwargs)
    d = [-updates for updates, _ in run(tx, grads)]
    inside = (0.7 * d[1] - 1.3 * d[2]) / metric
    # A hundredth of the norm off the span still is in it, two are not.
    off = np.random.default_rng(2).normal(size=SIZE)
    basis = np.stack(d, axis=1) / np.sqrt(metric)[:, None]
    off_z = off * np.sqrt(metric)
    off_z -= basis @ np.linalg.lstsq(basis, off_z)[0]
    off = off_z / np.sqrt(metric)
    off *= np.sqrt(inside @ (metric * inside) / (off @ (metric * off)))
    for distance, restarted in ((0.0, True), (0.009, True), (0.02, False)):
        state = run(tx, [*grads, inside + distance * off])[-1][1]
        assert bool(state.direction_state.diagnostics.restarted) == restarted, distance
    # After the restart the span is that of one direction, in which nothing lies.
    states = run(tx, [*grads, inside, inside + off])
    assert [bool(s.direction_state.diagnostics.restarted) for _, s in states] == [
        True,
        False,
        False,
        True,
        False,
    ]
    np.testing.assert_allclose(states[3][0], metric * inside, rtol=1e-12)
    tx = scale_by_nlcg_with_restart_memory(0.5, memory=SIZE, **kwargs)  # never
    without = run(tx, [*grads, inside])
    assert not bool(without[-1][1].direction_state.diagnostics.restarted)


def test_exact_steps_on_a_quadratic_never_stall(x64):
    a = np.geomspace(1.0, 30.0, SIZE)
    tx = scale_by_nlcg_with_restart_memory("hs", memory=MEMORY)
    x, state = np.ones(SIZE), tx.init(jnp.zeros(SIZE))
    for _ in range(SIZE):
        g = a * x
        updates, state = tx.update(jnp.asarray(g), state)
        d = -np.asarray(updates)
        x = x - (d @ g) / (d @ (a * d)) * d
    assert int(state.direction_state.diagnostics.num_restarts) == 1
    np.testing.assert_allclose(x, 0.0, atol=1e-9)


def test_a_space_no_larger_than_the_memory_is_not_a_subspace():
    grads = np.random.default_rng(3).normal(size=(12, SIZE)).astype(np.float32)
    tx = scale_by_nlcg_with_restart_memory(0.1, memory=SIZE)
    assert int(run(tx, grads)[-1][1].direction_state.diagnostics.num_restarts) == 1


def test_a_skipped_step_changes_nothing():
    grads = np.random.default_rng(4).normal(size=(3, SIZE)).astype(np.float32)
    tx = scale_by_nlcg_with_restart_memory("pr+", memory=MEMORY)
    before = run(tx, grads)[-1][1].recent
    after = run(tx, [*grads, np.full(SIZE, np.nan, np.float32)])[-1][1].recent
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="memory=0 must be an integer"):
        scale_by_nlcg_with_restart_memory(memory=0)
    with pytest.raises(ValueError, match="scope='per_leaf' must be 'global'"):
        scale_by_nlcg_with_restart_memory(memory=3, scope="per_leaf")
