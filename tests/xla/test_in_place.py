"""States that are written over: which selection is left out, and flags per leaf."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlcg_optax import scale_by_diagonal_secant
from nlcg_optax.xla import switch
from nlcg_optax.xla.in_place import (
    SelfGuardedTransformation,
    flag_per_leaf,
    selected,
)


def test_the_state_of_a_transformation_that_guards_itself_is_taken():
    old, new, no = jnp.zeros(2), jnp.ones(2), jnp.array(False)
    guarded = scale_by_diagonal_secant(0.1)
    assert isinstance(guarded, SelfGuardedTransformation)
    np.testing.assert_array_equal(selected(guarded, no, new, old), new)
    with switch.plain_twins():
        np.testing.assert_array_equal(selected(guarded, no, new, old), old)
    # In a chain it sees another gradient than the direction, so the state is selected.
    for other in (optax.identity(), optax.chain(guarded)):
        np.testing.assert_array_equal(selected(other, no, new, old), old)


def test_flags_are_the_flag():
    tree = {"w": jnp.ones([2, 3]), "b": jnp.float32(2.0), "none": jnp.zeros([0])}
    for function in (flag_per_leaf, jax.jit(flag_per_leaf)):
        for value in (True, False):
            flags = function(jnp.array(value), tree)
            assert jax.tree.map(bool, flags) == dict.fromkeys(tree, value)


def test_trees_of_different_dataclasses_with_equal_fields_keep_their_kinds():
    # Their treedefs compare equal (jax 0.10.2), so that a tree in the arguments of a
    # jitted function comes back, now and then, as the kind that was traced before.
    x = jnp.ones(3)
    for number in range(300):
        kind = jax.tree_util.register_dataclass(
            dataclasses.make_dataclass(f"Kind{number}", ["b", "w"])
        )
        flags = jax.eval_shape(
            lambda tree: flag_per_leaf(jnp.array(True), tree), kind(x, x)
        )
        assert type(flags) is kind
