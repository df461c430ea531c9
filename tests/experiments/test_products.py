"""Counting matrix products in a traced program."""

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import products


def counted(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return products.operations(jax.make_jaxpr(function)(*arrays).jaxpr)


def test_products_are_counted_by_turns_and_the_dearer_branch():
    # [3, 4] times [4, 5]: 60 multiplications and as many additions.
    assert counted(jnp.matmul, (3, 4), (4, 5)) == 120
    square = (4, 4)  # 128 each
    assert counted(
        lambda x: jax.lax.fori_loop(0, 7, lambda _, y: y @ x, x), square
    ) == (7 * 128)

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)

    assert counted(jax.jit(either), square) == 2 * 128
    with pytest.raises(ValueError, match="unknown length"):
        counted(
            lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ x, x),
            square,
        )


def test_muon_costs_five_steps_of_newton_schulz():
    cost = products.cost_of(products.PEERS["Muon"], [(8, 3), (5,)])
    # X X^T and A^2 of 3 by 3, and their sum times X, on the shorter side.
    assert cost.operations == 5 * 2 * (3 * 3 * 8 + 3**3 + 3 * 3 * 8)
    assert products.cost_of(products.PEERS["Adam"], [(8, 3), (5,)]).operations == 0


def test_the_presets_add_the_products_of_their_factors(capsys):
    products.main(["--small"])
    text = capsys.readouterr().out
    assert all(name in text for name in products.PEERS)
