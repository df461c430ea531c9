"""Proves that jit, donation, scan and vmap change nothing but the speed."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contract.running import (
    DEAR,
    KEY,
    OF_SCALARS,
    compiled_step,
    each_row,
    make_step,
    small_loss,
    small_params,
    types,
)
from tests.contract.table import BY_NAME


@each_row(fast=None)
def test_weakly_typed_parameters_give_the_strongly_typed_state(row):
    # `jnp.asarray(1.)` is weakly typed. A state that took this over would change its
    # type, and be compiled again, as soon as the parameters are strong.
    weak = {"b": jnp.asarray(1.0), "w": jnp.asarray(2.0)}
    strong = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weak)
    assert all(leaf.weak_type for leaf in jax.tree.leaves(weak))
    tx = row.make()
    assert types(tx.init(weak)) == types(tx.init(strong))

    def loss(params):
        return (params["b"] - params["w"]) ** 2 + params["w"] ** 2

    step = make_step(row, tx, loss)
    _, from_weak = jax.eval_shape(step, weak, tx.init(weak))
    _, from_strong = jax.eval_shape(step, strong, tx.init(strong))
    chex.assert_trees_all_equal_shapes_and_dtypes(from_weak, from_strong)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(from_weak))


@each_row(names=KEY, fast=DEAR)
def test_donation(row):
    tx, plain = compiled_step(row.name)
    step = make_step(row, tx, small_loss)
    donating = jax.jit(step, donate_argnums=(0, 1))
    start = small_params()
    one = (start, tx.init(start))
    # The parameters themselves are donated with the state: none may be aliased.
    copy = jax.tree.map(jnp.copy, start)
    other = (copy, tx.init(copy))
    for _ in range(3):
        before = other
        one, other = plain(*one), donating(*other)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before[0]))
        direction = optax.tree.get(before[1], "direction")
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(direction))
    # The same program but for the buffers: equal up to another choice of fusions.
    chex.assert_trees_all_close(other[0], one[0], rtol=1e-6)
    chex.assert_trees_all_close(other[1], one[1], rtol=1e-5, atol=1e-6)


@each_row(without=OF_SCALARS)
def test_nothing_leaks_from_a_trace(row, leak_checks):
    tx, params = row.make(), small_params()
    step = make_step(row, tx, small_loss)

    def run(params):
        carry = (params, tx.init(params))
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=2)[0][0]

    out = jax.eval_shape(run, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, params)


@pytest.mark.parametrize("name", ["pr+", "secant_hvp", "paper_fr_step", "search"])
def test_scan_gives_the_numbers_of_a_loop(name):
    row = BY_NAME[name]
    tx, jitted = compiled_step(name)
    step = make_step(row, tx, small_loss)
    params = small_params()
    carry = (params, tx.init(params))

    @jax.jit
    def scanned(carry):
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=4)[0]

    looped = carry
    for _ in range(4):
        looped = jitted(*looped)
    # Roundings of float32, carried through four steps.
    chex.assert_trees_all_close(scanned(carry)[0], looped[0], rtol=1e-5, atol=1e-6)


@each_row(names=KEY, fast=DEAR)
def test_vmap_gives_the_numbers_of_a_loop_over_problems(row):
    tx = row.make()
    scales = jnp.array([1.0, 0.3, 2.0])

    def step(scale, params, state):
        return make_step(row, tx, lambda p: scale * small_loss(p))(params, state)

    def start(shift):
        return jax.tree.map(lambda leaf: leaf + shift, small_params())

    starts = jax.vmap(start)(scales)
    together = (starts, jax.vmap(tx.init)(starts))
    mapped, single = jax.jit(jax.vmap(step)), jax.jit(step)
    for _ in range(3):
        together = mapped(scales, *together)
    for i, scale in enumerate(scales):
        alone = (start(scale), tx.init(start(scale)))
        for _ in range(3):
            alone = single(scale, *alone)
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        # Sums run in another order: roundings, carried through three steps.
        chex.assert_trees_all_close(mine[0], alone[0], rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_equal(
            optax.tree.get(mine[1], "num_restarts"),
            optax.tree.get(alone[1], "num_restarts"),
        )


def test_vmapped_gated_curvature_is_taken_only_where_it_is_due():
    # Under vmap the condition becomes a select: every problem computes the product,
    # but only the one whose turn it is may use it.
    row = BY_NAME["secant_hvp"]  # refreshes at even steps
    tx = row.make()
    step = jax.jit(make_step(row, tx, small_loss))
    params = small_params()
    first = step(params, tx.init(params))
    second = step(*first)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)
    _, state = jax.jit(jax.vmap(make_step(row, tx, small_loss)))(*both)
    chex.assert_trees_all_equal(
        optax.tree.get(state, "num_secants"), jnp.array([0, 1], jnp.int32)
    )
