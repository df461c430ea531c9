"""Proves that a virtual batch takes the step of the big batch, in every form."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics
from nlcg_optax.wrappers import virtual_batch
from tests.contract.running import (
    DEAR,
    FAST,
    KEY,
    each_row,
    extra_args,
    make_step,
    small_params,
)
from tests.contract.table import BY_NAME

MICRO, ROWS = 3, 4


def _rows(dtype=jnp.float32):
    # A regression problem with rows of very different sizes.
    x = np.sin(np.arange(MICRO * ROWS * 3.0)).reshape(MICRO * ROWS, 3)
    y = np.cos(np.arange(MICRO * ROWS * 2.0)).reshape(MICRO * ROWS, 2)
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def _batch_loss(params, rows):
    x, y = rows
    out = x @ params["w"] + params["b"][None]
    return jnp.mean(jnp.abs(out - y) ** 2)


def _micro(rows, i):
    return jax.tree.map(lambda r: r[i * ROWS : (i + 1) * ROWS], rows)


@functools.cache
def _big_batch_run(name, dtype=jnp.float32, steps=3):
    row, rows = BY_NAME[name], _rows(dtype)
    tx = row.make()
    step = jax.jit(make_step(row, tx, lambda p: _batch_loss(p, rows)))
    carry = (small_params(dtype), tx.init(small_params(dtype)))
    for _ in range(steps):
        carry = step(*carry)
    return carry


def _micro_batch_run(row, wrapped, dtype=jnp.float32, steps=3, spoilers=()):
    """Runs micro-batches; a spoiler is (before which micro-batch, what it spoils)."""
    rows = _rows(dtype)

    def whole_loss(params):
        return _batch_loss(params, rows)

    @jax.jit
    def micro_step(params, state, micro_rows, bad_value, bad_grad):
        value, grad = jax.value_and_grad(_batch_loss)(params, micro_rows)
        grad = jax.tree.map(jnp.conj, grad)
        value = jnp.where(bad_value, jnp.nan, value).astype(value.dtype)
        grad["b"] = jnp.where(bad_grad, jnp.nan, grad["b"]).astype(grad["b"].dtype)
        known = extra_args(row, value, grad, whole_loss)
        known.setdefault("value", value)
        updates, state = wrapped.update(grad, state, params, **known)
        return optax.apply_updates(params, updates), state

    params = small_params(dtype)
    state = wrapped.init(params)
    for _ in range(steps):
        start = params
        for i in range(MICRO):
            for before, what in spoilers:
                if before == i:
                    params, state = micro_step(
                        params, state, _micro(rows, 0), what == "value", what == "grad"
                    )
            chex.assert_trees_all_equal(params, start)
            params, state = micro_step(params, state, _micro(rows, i), False, False)
    return params, state


# These are in the test in float64.
SEARCHES = {
    name: "a rounding of float32 can flip a decision"
    for name in KEY
    if BY_NAME[name].searches
}


@each_row(names=KEY, without=SEARCHES, fast=DEAR)
def test_virtual_batch_is_the_step_of_the_big_batch(row):
    """Parameters and the whole state; what depends on the loss too."""
    params, state = _micro_batch_run(row, virtual_batch(row.make(), MICRO))
    big_params, big_state = _big_batch_run(row.name)
    # The mean of means is the mean up to roundings of float32, in each of 3 steps.
    chex.assert_trees_all_close(params, big_params, rtol=2e-5, atol=2e-6)
    chex.assert_trees_all_close(state.inner_state, big_state, rtol=1e-4, atol=1e-5)
    assert state.count == 3


def _names(*names):
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
            for name in names
        ],
    )


@_names("pr+", "secant_params", "paper_pr_online")
def test_virtual_batch_leaves_spoiled_micro_batches_out(name):
    row = BY_NAME[name]
    wrapped = virtual_batch(row.make(), MICRO)
    clean = _micro_batch_run(row, wrapped)
    spoilers = ((0, "grad"), (1, "value"), (2, "grad"))
    spoiled = _micro_batch_run(row, wrapped, spoilers=spoilers)
    # The same program on the same numbers.
    chex.assert_trees_all_equal(spoiled[0], clean[0])
    chex.assert_trees_all_equal(spoiled[1].inner_state, clean[1].inner_state)


# Without Optax's zoom, whose decisions a rounding of float64 can flip as well.
@_names("pr+", "secant_params", "paper_pr_online", "search", "backtracking_rms")
def test_virtual_batch_in_float64(name, x64):
    row = BY_NAME[name]
    params, _ = _micro_batch_run(
        row, virtual_batch(row.make(), MICRO), jnp.float64, steps=2
    )
    big_params, _ = _big_batch_run(name, jnp.float64, steps=2)
    # Roundings of float64 (2e-16) times a few hundred operations.
    chex.assert_trees_all_close(params, big_params, rtol=1e-12, atol=1e-13)


def test_virtual_batch_of_complex_parameters():
    row = BY_NAME["pr+"]
    params, _ = _micro_batch_run(
        row, virtual_batch(row.make(), MICRO), jnp.complex64, steps=2
    )
    big_params, _ = _big_batch_run("pr+", jnp.complex64, steps=2)
    chex.assert_trees_all_close(params, big_params, rtol=2e-5, atol=2e-6)


@_names("pr+", "secant_params")
def test_plain_multi_steps_averages_the_gradient(name, standard_promotion):
    row = BY_NAME[name]
    # Without `virtual_batch` the loss is that of the last micro-batch, so only what
    # does not read the loss agrees with the big batch.
    params, state = _micro_batch_run(
        row, optax.MultiSteps(row.make(), every_k_schedule=MICRO), steps=1
    )
    big_params, big_state = _big_batch_run(row.name, steps=1)
    chex.assert_trees_all_close(params, big_params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        diagnostics(state)["grad_norm"], diagnostics(big_state)["grad_norm"], rtol=1e-5
    )
