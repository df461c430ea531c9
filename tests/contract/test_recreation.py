"""An optimizer that is built again is the same key of a compiled program.

optimistix takes the closures of an Optax transformation apart and compares what it
finds: what is equal is not traced again (its own tests ask that of Optax's aliases). A
``functools.partial`` or a bound method in a closure is never equal to another.
"""

import equinox
import jax.numpy as jnp
import optax
import optimistix
import pytest

import nlcg_optax as n
from tests.contract.running import each_row
from tests.contract.table import ROWS

PROMOTING = {row.name: "has Optax's closures inside" for row in ROWS if row.promotes}


def parts(tx):
    solver = optimistix.OptaxMinimiser(tx, rtol=1e-3, atol=1e-3)
    return equinox.partition(solver.optim, equinox.is_array)


@each_row(fast=None, without=PROMOTING)
def test_two_optimizers_built_alike_are_equal(row):
    one, other = (parts(row.make())[1] for _ in range(2))
    assert equinox.tree_equal(one, other)


@pytest.mark.parametrize(
    "make",
    [
        optax.adam,
        n.nlcg,
        n.large_batch_nlcg,
        n.paper_nlcg,
        n.scale_by_diagonal_secant,
        lambda x: n.scale_by_kronecker(relative_damping=x),
        lambda x: n.scale_by_hutchinson(decay=x),
        lambda x: n.scale_by_limited_memory(min_cosine=x),
        lambda x: n.scale_by_hager_zhang_linesearch(max_slope_ratio=x),
        lambda x: n.scale_by_subspace_step(initial_damping=x),
        lambda x: n.scale_by_slope_ratio(n.scale_by_nlcg(), initial_step_size=x),
        lambda x: n.virtual_batch(n.nlcg(x), 2),
    ],
)
def test_another_number_is_no_other_program(make):
    (one, static), (other, again) = (parts(make(jnp.array(x))) for x in (0.25, 0.5))
    assert equinox.tree_equal(static, again)
    assert not equinox.tree_equal(one, other)  # the number is an argument
