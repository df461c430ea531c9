"""Proves that JAX's own checks find nothing in a run in which all is well."""

import jax
import optax
import pytest

from tests.contract.test_eager_compilations import PARAMS, ROWS, updates

FEW = ("kronecker", "secant", "limited memory", "hs", "hz", "paper_nlcg", "nlcg")
MODES = {
    "nans": lambda: jax.debug_nans(True),
    "infs": lambda: jax.debug_infs(True),
    "checks": lambda: jax.enable_checks(True),
    "leaks": jax.checking_leaks,
    "no jit": jax.disable_jit,
}


def is_left_out(name, mode):
    # Optax's sign of a state without a value is an infinite one.
    searches = ("nlcg, line search", "Hager-Zhang", "for_linesearch")
    return mode == "infs" and name.startswith(searches)


def is_fast(name, mode):
    return name in FEW and mode in ("nans", "infs")


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(
            name, mode, marks=[] if is_fast(name, mode) else [pytest.mark.slow]
        )
        for name in ROWS
        for mode in MODES
        if not is_left_out(name, mode)
    ],
)
def test_jax_checks_pass(name, mode):
    """Un-jitted, where each operation is checked; the others as JAX traces them."""
    tx = optax.with_extra_args_support(ROWS[name]())

    def step(params, state):
        return updates(tx, params, state)

    if mode in ("checks", "leaks"):
        step = jax.jit(step)
    with MODES[mode]():
        carry = (PARAMS, tx.init(PARAMS))
        for _ in range(3):
            carry = step(*carry)
    moved = jax.tree.map(lambda new, old: abs(new - old).max(), carry[0], PARAMS)
    assert max(jax.tree.leaves(moved)) > 0
