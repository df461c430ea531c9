"""Un-jitted updates compile nothing after their second call, jitted ones one program.

For every row of the table, on one CPU device.
"""

import jax
import pytest

from tests.contract.cases import count_compilations
from tests.contract.table import PARAMS, ROWS, make, step


def run(tx, step, calls):
    params, state = PARAMS, tx.init(PARAMS)
    compiled = []
    for _ in range(calls):
        with count_compilations() as messages:
            params, state = step(params, state)
        compiled.append(messages)
    return compiled


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ROWS)
def test_eager_calls_compile_nothing_after_the_second(name):
    tx = make(name)
    # JAX compiles an operation the first time that it meets it, so a first run compiles
    # those of each branch (a refresh, a secant pair that is taken).
    run(tx, lambda p, s: step(tx, p, s), 10)
    compiled = run(tx, lambda p, s: step(tx, p, s), 10)
    assert compiled == [[]] * 10


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ROWS)
def test_jitted_calls_compile_one_program(name):
    tx = make(name)
    compiled = run(tx, jax.jit(lambda p, s: step(tx, p, s)), 10)
    assert [len(messages) for messages in compiled[1:]] == [0] * 9
