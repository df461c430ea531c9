"""Un-jitted updates compile nothing after their second call, on one CPU device.

That jitted ones compile one program is asserted by `test_common`.
"""

from tests.contract.running import (
    OF_SCALARS,
    OPTAX_SEARCHES,
    WIDE,
    count_compilations,
    each_row,
    make_step,
    small_loss,
    small_params,
)


def _compilations(row, calls):
    """The compilations in each of the first calls of a new transformation."""
    tx, params = row.make(), small_params()
    step, state = make_step(row, tx, small_loss), tx.init(params)
    compiled = []
    for _ in range(calls):
        with count_compilations() as messages:
            params, state = step(params, state)
        compiled.append(messages)
    return compiled


@each_row(fast=WIDE, without=OF_SCALARS | OPTAX_SEARCHES)
def test_eager_calls_compile_nothing_after_the_second(row):
    # JAX compiles an operation the first time that it meets it, so a first run compiles
    # those of each branch (a refresh, a secant pair that is taken). The second run is
    # longer, since a program that depends on the count is known as far as the first.
    _compilations(row, 10)
    assert _compilations(row, 13) == [[]] * 13
