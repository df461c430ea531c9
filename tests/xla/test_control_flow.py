"""Conditionals and loops equal JAX's, traced or not."""

import jax
import jax.numpy as jnp
import numpy as np

from nlcg_optax.xla.control_flow import cond, while_loop
from tests.contract.running import count_compilations


def collatz(x):
    """The number of steps to one, and a weight that the branches change."""

    def turn(carry):
        n, steps = carry
        n = cond(n % 2 == 0, lambda m: m // 2, lambda m: 3 * m + 1, n)
        return n, steps + 1

    return while_loop(lambda carry: carry[0] != 1, turn, (x, jnp.zeros((), jnp.int32)))


def test_loops_and_branches_are_those_of_jax():
    starts = jnp.array([1, 6, 7, 27], jnp.int32)
    expected = [0, 8, 16, 111]
    eager = [int(collatz(x)[1]) for x in starts]
    assert eager == expected
    np.testing.assert_array_equal(jax.jit(jax.vmap(collatz))(starts)[1], expected)
    assert int(jax.jit(collatz)(starts[3])[1]) == 111


def test_a_condition_that_becomes_traced_on_the_way():
    # The start is known, what the body adds is not.
    def run(step):
        return while_loop(lambda x: x < 10.0, lambda x: x + step, jnp.float32(0.0))

    assert float(jax.jit(run)(4.0)) == 12.0
    assert float(run(4.0)) == 12.0


def test_eager_turns_compile_nothing_new():
    collatz(jnp.int32(6))
    with count_compilations() as compiled:
        collatz(jnp.int32(27))
    assert compiled == []
