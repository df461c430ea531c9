"""Proves that JAX's debugging modes change no number and find nothing."""

import chex
import jax
import pytest

from tests.contract.running import (
    FAST,
    OF_SCALARS,
    WIDE,
    amplifies,
    compiled_step,
    each_row,
    make_step,
    small_loss,
    small_params,
)
from tests.contract.table import ROWS

# Where they begin, the states of line searches hold the infinite value by which
# ``optax.value_and_grad_from_state`` knows that there is none yet.
SEARCHES = {row.name: "begins with an infinite value" for row in ROWS if row.searches}


def _steps(tx, step, count, params):
    carry = params, tx.init(params)
    for _ in range(count):
        carry = step(*carry)
    return carry


def _eager(row, count=3, params=None):
    tx = row.make()
    params = small_params() if params is None else params
    return _steps(tx, make_step(row, tx, small_loss), count, params)


@each_row(without=OF_SCALARS, fast=WIDE)
def test_nothing_is_found_in_any_operation_of_three_steps(row):
    """Un-jitted, where each operation is looked at by itself."""
    with jax.debug_nans(True), jax.debug_infs(row.name not in SEARCHES):
        found = _eager(row)
    chex.assert_tree_all_finite(found[0])


@each_row(names=SEARCHES, fast=None)
def test_the_infinite_value_before_a_search_is_found(row):
    with jax.debug_infs(True), pytest.raises(FloatingPointError):
        row.make().init(small_params())


@each_row(names=FAST)
def test_nothing_is_found_in_the_results_of_three_jitted_steps(row):
    """The same programs; another pair of modes would look at the same results."""
    tx, step = compiled_step(row.name)
    with jax.debug_nans(True):
        found = _steps(tx, step, 3, small_params())
    chex.assert_trees_all_equal(found, _steps(tx, step, 3, small_params()))


@each_row(fast=WIDE)
def test_the_checks_of_jax_pass_while_it_traces(row):
    """They look at the types of every equation that a step is made of."""
    tx, params = row.make(), small_params()
    step = make_step(row, tx, small_loss)
    with jax.enable_checks(True):
        out = jax.eval_shape(lambda p: step(*step(p, tx.init(p))), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(out[0], params)


@each_row(names=WIDE)
def test_without_jit_the_numbers_are_the_same(row, request):
    """Loops and conditionals are those of Python then; traced without compilation."""
    if amplifies(row):
        request.getfixturevalue("x64")
    params = small_params(float)
    with jax.disable_jit():
        found = _eager(row, 2, params)
    # Nothing is fused in either: some roundings of float32 in loops and conditionals.
    chex.assert_trees_all_close(found, _eager(row, 2, params), rtol=1e-4, atol=1e-5)
