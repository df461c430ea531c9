"""Every function of `xla` computes what its plain twin computes, traced and eager."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import scale_by_diagonal_secant, scale_by_nlcg
from nlcg_optax.xla import (
    control_flow,
    in_place,
    joint_reductions,
    scalars,
    switch,
)
from nlcg_optax.xla.eigh import eigh
from nlcg_optax.xla.shared_constants import share_constants

RNG = np.random.default_rng(1)
TREE = {
    name: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    for name, shape in {"w": (40, 48), "v": (40, 48), "b": (48,), "s": ()}.items()
}
DATA = jnp.asarray(RNG.normal(size=2000), jnp.float32)


def reduced(tree):
    squares = [x * x for x in jax.tree.leaves(tree)]
    reducers = [jax.lax.add, joint_reductions.larger]
    return joint_reductions.reductions([squares, squares], reducers, jnp.float32)


def flags(tree):
    return in_place.flag_per_leaf(tree["s"] < 10, tree)


def chosen(tree):
    # The condition holds, so that both take the new state.
    guarded = scale_by_diagonal_secant(0.1)
    return in_place.selected(guarded, tree["s"] < 10, tree, TREE)


def settled(tree):
    beta = jnp.sum(tree["w"] * tree["v"], axis=0)
    return scalars.computed_once(beta, beta > 0, tree["s"], jnp.float32(jnp.nan))


def branched(tree):
    return control_flow.cond(tree["s"] < 0, jnp.sin, jnp.cos, tree["b"])


def looped(tree):
    def cond_fn(carry):
        return carry[0] < 5

    def body_fn(carry):
        return carry[0] + 1, 0.5 * carry[1]

    return control_flow.while_loop(cond_fn, body_fn, (jnp.int32(0), tree["b"]))


def applied(tree):
    return control_flow.apply_if(tree["s"] < 10, lambda _, x: jnp.sin(x), tree["b"])


def decomposed(tree):
    squares = jnp.stack([tree["w"] @ tree["w"].T, tree["v"] @ tree["v"].T])
    return eigh(squares)[0]


def fitted(tree):
    return jnp.sum((tree["s"] * share_constants(DATA) - 1) ** 2)


@pytest.mark.parametrize(
    "function",
    [
        reduced,
        flags,
        chosen,
        settled,
        branched,
        looped,
        applied,
        decomposed,
        fitted,
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_twins_agree(function, traced):
    def plain(tree):
        with switch.plain_twins():
            return function(tree)

    ours, twin = (jax.jit(f) if traced else f for f in (function, plain))
    # Sums of at most 4000 positive numbers in another order: sqrt(4000) roundings.
    chex.assert_trees_all_close(ours(TREE), twin(TREE), rtol=64 * 2**-24)


def steps(tx, gradients, params):
    state = tx.init(params)

    def step(state, grads):
        updates, state = tx.update(grads, state, params)
        return state, updates

    return jax.jit(lambda s: jax.lax.scan(step, s, gradients)[1])(state)


@pytest.mark.parametrize("rule", ["fr", "hz"])
@pytest.mark.parametrize("secant", [False, True])
def test_updates_are_those_of_the_plain_twins(x64, rule, secant):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), TREE)
    gradients = jax.tree.map(
        lambda x: x[None] + 0.2 * jnp.asarray(RNG.normal(size=(6, *x.shape))), params
    )
    gradients["s"] = gradients["s"].at[3].set(jnp.nan)  # a step to be skipped
    preconditioner = scale_by_diagonal_secant(0.1) if secant else None
    tx = optax.chain(
        scale_by_nlcg(rule, preconditioner=preconditioner), optax.scale(-0.1)
    )
    ours = steps(tx, gradients, params)
    with switch.plain_twins():
        plain = steps(tx, gradients, params)
    # Betas are quotients of sums of 4000 products, which lose some digits of 16.
    chex.assert_trees_all_close(ours, plain, rtol=1e-11)
    assert float(jnp.abs(ours["w"][3]).max()) == 0.0
    assert float(jnp.abs(ours["w"][4]).max()) > 0.0
