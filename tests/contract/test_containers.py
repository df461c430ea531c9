"""Proves that states survive saving, and that every kind of tree holds parameters."""

import dataclasses
import pickle
import re

import chex
import equinox
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import serialization, struct
from flax.core import FrozenDict

from tests.contract.running import (
    FAST,
    OF_SCALARS,
    WIDE,
    compiled_step,
    each_row,
    each_row_with_one,
    make_step,
    small_loss,
    small_params,
)


def _pickled(carry, _, __):
    return pickle.loads(pickle.dumps(carry))


def _packed(carry, like, _):
    return serialization.from_bytes(like, serialization.to_bytes(carry))


def _checkpointed(carry, _, folder):
    # Without an abstract target named tuples would come back as dictionaries.
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, carry)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "run", carry)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "run", abstract)


SAVED = {"pickle": _pickled, "msgpack": _packed, "orbax": _checkpointed}


@each_row_with_one("saved", list(SAVED), without=OF_SCALARS)
def test_a_restored_state_takes_the_same_next_step(row, saved, tmp_path):
    """Bit for bit, after two steps, by the program that made them."""
    tx, step = compiled_step(row.name)
    like = carry = (small_params(), tx.init(small_params()))
    for _ in range(2):
        carry = step(*carry)
    restored = jax.tree.map(jnp.asarray, SAVED[saved](carry, like, tmp_path))
    chex.assert_trees_all_equal_structs(restored, carry)
    chex.assert_trees_all_equal_dtypes(restored, carry)
    chex.assert_trees_all_equal(step(*restored), step(*carry))


@each_row(
    without=OF_SCALARS, fast=("hutchinson", "secant_hvp", "curvature", "hager_zhang")
)
def test_outside_of_jit_a_state_of_numpy_arrays_takes_the_same_next_step(row):
    """Some ways to restore a state return them."""
    tx, step = compiled_step(row.name)
    carry = step(*step(small_params(), tx.init(small_params())))
    eager = make_step(row, tx, small_loss)
    found, expected = eager(*jax.device_get(carry)), eager(*carry)
    chex.assert_trees_all_equal_structs(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


@struct.dataclass
class FlaxParams:
    b: jax.Array
    w: jax.Array
    # To JAX, trees of two dataclasses with the same fields are equal: a function of
    # Optax that is jitted could return the other one.
    kind: str = struct.field(pytree_node=False, default="of Flax")


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
    if isinstance(tree, (dict, FrozenDict)):
        return dict(tree)
    return {"b": tree.b, "w": tree.w}


def _program(row, kind):
    """What one step computes, from leaves to leaves."""
    tx = row.make()
    params = small_params() if kind is None else TREES[kind](small_params())
    leaves, treedef = jax.tree.flatten((params, tx.init(params)))
    loss = small_loss._replace(
        outputs_fn=lambda tree: small_loss.outputs_fn(_as_dict(tree))
    )
    step = make_step(row, tx, loss)

    def flat(*leaves):
        return jax.tree.leaves(step(*jax.tree.unflatten(treedef, leaves)))

    return re.sub(r" at 0x[0-9a-f]+", "", str(jax.make_jaxpr(flat)(*leaves)))


@each_row_with_one("kind", list(TREES), fast=WIDE)
def test_a_tree_of_another_kind_makes_the_program_of_a_dictionary(row, kind):
    """Also where None stands for what `equinox.filter` leaves out."""
    assert _program(row, kind) == _program(row, None)


@each_row_with_one("kind", list(TREES), names=FAST, fast=("pr+", "search"))
def test_a_tree_of_another_kind_has_the_numbers_of_a_dictionary(row, kind):
    """What the equality of the programs means, for one row of each kind."""
    tx, plain_step = compiled_step(row.name)
    params = TREES[kind](small_params())
    loss = small_loss._replace(
        outputs_fn=lambda tree: small_loss.outputs_fn(_as_dict(tree))
    )
    own_step = jax.jit(make_step(row, tx, loss))
    own, plain = (params, tx.init(params)), (small_params(), tx.init(small_params()))
    for _ in range(2):
        own, plain = own_step(*own), plain_step(*plain)
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
