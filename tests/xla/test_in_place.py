"""States that are written over: flags per leaf, and transformations that guard."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax.xla.in_place import SelfGuardedTransformation, flag_per_leaf, selected
from nlcg_optax.xla.switch import plain_twins

NEW, OLD = {"x": jnp.ones(2)}, {"x": jnp.zeros(2)}


def transformation(kind):
    return kind(lambda _: OLD, lambda g, *_: (g, NEW))


@pytest.mark.parametrize("value", [True, False])
def test_flags_are_the_flag_under_vmap(value):
    flags = jax.vmap(lambda x: flag_per_leaf(jnp.array(value), after=[x]))(jnp.ones(3))
    np.testing.assert_array_equal(flags[0], [value] * 3)


def test_only_a_transformation_that_guards_itself_is_not_selected():
    guarded = transformation(SelfGuardedTransformation)
    assert isinstance(guarded, optax.GradientTransformationExtraArgs)
    assert selected(guarded, jnp.array(False), NEW, OLD) is NEW
    in_a_chain = optax.chain(guarded)
    plain = transformation(optax.GradientTransformationExtraArgs)
    for tx in (in_a_chain, plain):
        state = selected(tx, jnp.array(False), NEW, OLD)
        np.testing.assert_array_equal(state["x"], OLD["x"])
    with plain_twins():
        state = selected(guarded, jnp.array(False), NEW, OLD)
    np.testing.assert_array_equal(state["x"], OLD["x"])
