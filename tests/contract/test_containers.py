"""Proves that states survive saving, and that every kind of tree holds parameters."""

import dataclasses
import pickle

import chex
import equinox
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import serialization, struct
from flax.core import FrozenDict

from tests.contract.cases import compiled_step, small_params
from tests.contract.table import PARAMS, each_row, make, outputs_fn, step

pytestmark = pytest.mark.usefixtures("standard_promotion")


def _pickled(carry, _):
    return pickle.loads(pickle.dumps(carry))


def _packed(carry, like):
    return serialization.from_bytes(like, serialization.to_bytes(carry))


@each_row
@pytest.mark.parametrize("saved", [_pickled, _packed], ids=["pickle", "msgpack"])
def test_a_restored_state_takes_the_same_next_step(row, saved):
    """Bit for bit, after two steps, by the program that made them."""
    tx = make(row)
    one_step = jax.jit(lambda params, state: step(tx, params, state))
    like = carry = (PARAMS, tx.init(PARAMS))
    for _ in range(2):
        carry = one_step(*carry)
    restored = jax.tree.map(jnp.asarray, saved(carry, like))
    chex.assert_trees_all_equal_structs(restored, carry)
    chex.assert_trees_all_equal_dtypes(restored, carry)
    chex.assert_trees_all_equal(one_step(*restored), one_step(*carry))


@struct.dataclass
class FlaxParams:
    b: jax.Array
    w: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PlainParams:
    b: jax.Array
    w: jax.Array


class Module(equinox.Module):
    """With a function and a number that the gradient leaves out."""

    b: jax.Array
    w: jax.Array
    activation: object = jnp.tanh
    depth: int = 1


TREES = {
    "frozen": lambda p: FrozenDict(p),
    "flax dataclass": lambda p: FlaxParams(**p),
    "dataclass": lambda p: PlainParams(**p),
    "equinox": lambda p: equinox.filter(Module(**p), equinox.is_inexact_array),
}


def _as_dict(tree):
    if isinstance(tree, FrozenDict):
        return dict(tree)
    return {"b": tree.b, "w": tree.w}


@each_row
@pytest.mark.parametrize("kind", TREES)
def test_a_tree_of_another_kind_has_the_numbers_of_a_dictionary(row, kind):
    """Also where None stands for what `equinox.filter` leaves out."""
    tx = make(row)
    own = (TREES[kind](PARAMS), tx.init(TREES[kind](PARAMS)))
    plain = (PARAMS, tx.init(PARAMS))
    own_step = jax.jit(
        lambda params, state: step(
            tx, params, state, lambda tree: outputs_fn(_as_dict(tree))
        )
    )
    plain_step = jax.jit(lambda params, state: step(tx, params, state))
    for _ in range(2):
        own, plain = own_step(*own), plain_step(*plain)
    # The leaves and their order are the same, and with them the program.
    chex.assert_trees_all_close(_as_dict(own[0]), plain[0], rtol=1e-6)


def test_equinox_filtered_training_is_the_plain_one():
    """`filter_jit`, `filter_grad` and `apply_updates`, as in Equinox's documents."""
    tx, _ = compiled_step("pr+")
    model = Module(**small_params())
    state = tx.init(equinox.filter(model, equinox.is_inexact_array))

    def loss(model):
        hidden = model.activation(model.w + model.b[None])
        return jnp.sum((hidden - 0.5) ** 2)

    @equinox.filter_jit
    def train(model, state):
        grads = equinox.filter_grad(loss)(model)
        arrays = equinox.filter(model, equinox.is_inexact_array)
        updates, state = tx.update(grads, state, arrays)
        return equinox.apply_updates(model, updates), state

    def plain_loss(params):
        return loss(Module(**params))

    params, plain_state = small_params(), tx.init(small_params())
    for _ in range(3):
        model, state = train(model, state)
        grads = jax.grad(plain_loss)(params)
        updates, plain_state = tx.update(grads, plain_state, params)
        params = optax.apply_updates(params, updates)
    # Another program: roundings, carried through three steps.
    chex.assert_trees_all_close(_as_dict(model), params, rtol=1e-5, atol=1e-6)
    assert plain_loss(params) < plain_loss(small_params())
