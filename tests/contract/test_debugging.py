"""Proves that JAX's debugging modes change no number and find nothing."""

import functools

import chex
import jax
import pytest

from tests.contract.table import AMPLIFYING, PARAMS, each_row, make, step

pytestmark = pytest.mark.usefixtures("standard_promotion")

MODES = {
    "nans": jax.debug_nans,
    "infs": jax.debug_infs,
    "checks": jax.enable_checks,
    "leaks": jax.check_tracer_leaks,
    "no jit": jax.disable_jit,
}


# Where they begin, the states of line searches hold the infinite value by which
# ``optax.value_and_grad_from_state`` knows that there is none yet.
SEARCHES = (
    "nlcg, line search",
    "Hager-Zhang",
    "Hager-Zhang of L-BFGS",
    "for_linesearch",
)


def _three_steps(row, jitted, params=PARAMS):
    tx = make(row)
    one_step = functools.partial(step, tx)
    if jitted:
        one_step = jax.jit(one_step)
    carry = params, tx.init(params)
    for _ in range(3):
        carry = one_step(*carry)
    return carry


@functools.cache
def _without_a_mode(row, jitted):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return _three_steps(row, jitted)


@each_row
@pytest.mark.parametrize("mode", ["nans", "infs"])
@pytest.mark.parametrize("jitted", [False, True])
def test_nothing_is_found_in_three_steps(row, mode, jitted):
    if mode == "infs" and row in SEARCHES:
        with pytest.raises(FloatingPointError), jax.debug_infs(True):
            make(row).init(PARAMS)
        return
    with MODES[mode](True):
        found = _three_steps(row, jitted)
    # The same programs.
    chex.assert_trees_all_equal(found, _without_a_mode(row, jitted))


@pytest.mark.slow
@each_row
@pytest.mark.parametrize("mode", ["checks", "leaks", "no jit"])
def test_other_modes_change_no_number(row, mode, request):
    if row.startswith(AMPLIFYING):
        request.getfixturevalue("x64")
    params = jax.tree.map(lambda x: x.astype(float), PARAMS)
    with MODES[mode](True):
        found = _three_steps(row, True, params)
    # Without jit nothing is fused: some roundings of float32.
    expected = _three_steps(row, True, params)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
