"""Each function of the folder computes what its plain twin does, jitted and eager."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nlcg_optax import nlcg, scale_by_diagonal_secant
from nlcg_optax.xla import control_flow, switch
from nlcg_optax.xla.in_place import flag_per_leaf
from nlcg_optax.xla.joint_reductions import larger, reductions
from nlcg_optax.xla.shared_constants import share_constants

RNG = np.random.default_rng(0)
TREE = {"w": RNG.normal(size=(40, 48)), "v": RNG.normal(size=(40, 48))}
TREE |= {"b": RNG.normal(size=7), "s": RNG.normal(size=()), "none": np.zeros([0])}
DATA = RNG.normal(size=2000)


def sums_and_largest(tree):
    x = jax.tree.leaves(tree)
    lists = [x, [2 * y for y in x], [jnp.abs(y) for y in x]]
    return reductions(lists, [jax.lax.add, jax.lax.add, larger], jnp.float32)


def flags(tree):
    return [flag_per_leaf(flag, after=tree) for flag in (tree["s"] > -9, tree["s"] > 9)]


def with_constants(tree):
    return share_constants(lambda s: s * jnp.asarray(DATA, s.dtype), tree["s"])(
        tree["s"]
    )


def conditional(tree):
    def double(x):
        return 2 * x

    return [
        control_flow.cond(tree["s"] > bound, double, jnp.negative, tree["b"])
        for bound in (-9, 9)
    ]


def loop(tree):
    return control_flow.while_loop(
        lambda carry: carry[0] < 5,
        lambda carry: (carry[0] + 1, 2 * carry[1]),
        (jnp.int32(0), tree["b"]),
    )


TWINS = [sums_and_largest, flags, with_constants, conditional, loop]


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("function", TWINS, ids=lambda f: f.__name__)
def test_twins_agree(monkeypatch, function, jitted):
    # As on a laptop, whatever the number of devices of this run.
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), TREE)
    run = lambda: (jax.jit(lambda t: function(t)) if jitted else function)(tree)
    own = run()
    with switch.plain_twins():
        plain = run()
    # Sums of 3848 numbers of order one, in different orders: 40 units of rounding.
    chex.assert_trees_all_close(own, plain, rtol=5e-6, atol=1e-4)
    chex.assert_trees_all_equal_dtypes(own, plain)


def test_arrays_that_may_be_split_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda *_: 8)
    x = jnp.ones([8, 3])
    assert switch.on_one_cpu({"w": x, "n": np.ones(3)})
    seen = []  # A tracer might be split by `in_shardings`.
    jax.eval_shape(lambda y: seen.append(switch.on_one_cpu(y)), x)
    assert seen == [False]


@pytest.mark.skipif(jax.device_count() < 2, reason="needs several devices")
def test_split_arrays_are_known():
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    split = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec("x")))
    assert not switch.on_one_cpu([jnp.ones(8), split])
    assert switch.on_one_cpu([jnp.ones(8)])


def steps(tx, gradients, params):
    state = tx.init(params)

    def step(state, grads):
        updates, state = tx.update(grads, state, params)
        return state, updates

    return jax.jit(lambda s: jax.lax.scan(step, s, gradients)[1])(state)


@pytest.mark.parametrize("rule", ["fr", "pr+", "hz"])
@pytest.mark.parametrize("secant", [False, True])
def test_updates_do_not_depend_on_the_switch(x64, monkeypatch, rule, secant):
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    rng = np.random.default_rng(1)
    shapes = {"w": (40, 48), "v": (40, 48), "b": (48,), "c": (48,), "s": ()}
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
    gradients = {
        k: jnp.asarray(rng.normal(size=s) + 0.2 * rng.normal(size=(6, *s)))
        for k, s in shapes.items()
    }
    gradients["s"] = gradients["s"].at[3].set(jnp.nan)  # a step to be skipped
    preconditioner = scale_by_diagonal_secant(0.1) if secant else None
    tx = nlcg(0.1, rule, preconditioner=preconditioner)
    own = steps(tx, gradients, params)
    with switch.plain_twins():
        chex.assert_trees_all_close(own, steps(tx, gradients, params), rtol=1e-11)
    assert float(jnp.abs(own["w"][3]).max()) == 0.0
    assert float(jnp.abs(own["w"][4]).max()) > 0.0
