"""Proves that every part takes every kind of parameter that Optax's own take.

Abstract ones in ``init``, Python numbers, arrays without an element, None, and some
that are called like an argument or the field of a state.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from tests.contract.running import (
    OF_SCALARS,
    OPTAX_SEARCHES,
    WIDE,
    ModelLoss,
    each_row,
    make_step,
    small_loss,
    small_params,
)


def _shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@each_row(fast=None)
def test_init_of_abstract_parameters(row):
    """The state of arrays, outside of ``jax.eval_shape``, inside and closed over."""
    tx, params = row.make(), small_params()
    abstract, expected = _shapes(params), tx.init(params)
    if row.name not in OPTAX_SEARCHES:
        state = tx.init(abstract)
        chex.assert_trees_all_equal(state, expected)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, expected)
    assert _shapes(jax.eval_shape(tx.init, abstract)) == _shapes(expected)


@each_row(fast=None)
def test_update_of_abstract_parameters(row):
    tx, abstract = row.make(), _shapes(small_params())
    state = jax.eval_shape(tx.init, abstract)
    step = make_step(row, tx, small_loss)
    assert _shapes(jax.eval_shape(step, abstract, state)) == (abstract, _shapes(state))


def _run(row, params, outputs_fn, steps=3):
    """Parameters and state after steps without jit; no type of the state changes."""
    tx = row.make()
    step = make_step(row, tx, ModelLoss(outputs_fn, _square))
    state = tx.init(params)
    types = jax.tree.map(jax.typeof, state)
    for _ in range(steps):
        params, state = step(params, state)
        assert jax.tree.map(jax.typeof, state) == types
    return params, state


def _square(outputs):
    return jnp.sum((outputs - 0.5) ** 2)


def _outputs_of_a_line(params):
    x = jnp.linspace(0.1, 0.9, 3)
    return jnp.tanh(params["slope"] * x + params["intercept"])


@each_row(fast=None, without=OF_SCALARS | OPTAX_SEARCHES)
def test_python_numbers_are_parameters(row):
    numbers = {"slope": 1.0, "intercept": 0.25}
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), numbers)
    mine, state = _run(row, numbers, _outputs_of_a_line, 2)
    expected, expected_state = _run(row, arrays, _outputs_of_a_line, 2)
    # The same operations on the same numbers.
    chex.assert_trees_all_equal(mine, expected)
    chex.assert_trees_all_equal(state, expected_state)


# In the order of their names, which is that of the leaves.
ODD = {
    "beta": jnp.array([0.3, -0.4]),
    "count": None,
    "diagnostics": jnp.zeros([0]),
    "direction": jnp.zeros([0, 3]),
    "factors": jnp.ones([2, 3]) / 3,
    "grad": jnp.float32(0.5),
    "rows": jnp.zeros([2, 0]),
    "value": jnp.array([[0.2, -0.1], [0.4, 0.3]]),
}
PLAIN = {"b": ODD["beta"], "f": ODD["factors"], "g": ODD["grad"], "v": ODD["value"]}


def _odd_outputs(params):
    empty = [params[name] for name in ("diagnostics", "direction", "rows")]
    nothing = sum(jnp.sum(x**2) for x in empty)
    return nothing + _plain_outputs(
        {name[0]: params[name] for name in ("beta", "factors", "grad", "value")}
    )


def _plain_outputs(params):
    b, f, g, v = (params[name] for name in "bfgv")
    return jnp.tanh(b[:, None] + v @ f[:, :2] + g * f[:, 1:])


@each_row(names=WIDE)
def test_odd_leaves_and_names_change_no_number(row):
    odd, _ = _run(row, ODD, _odd_outputs)
    plain, _ = _run(row, PLAIN, _plain_outputs)
    assert odd["count"] is None
    assert odd["direction"].shape == (0, 3)
    named = {name[0]: odd[name] for name in ("beta", "factors", "grad", "value")}
    if row.name.startswith(("hutchinson", "equilibration")):
        # Other probes are drawn where there are more leaves.
        chex.assert_tree_all_finite(named)
    else:
        # Sums of the same numbers, in programs of other shapes.
        chex.assert_trees_all_close(named, plain, rtol=1e-5, atol=1e-6)
    assert optax.tree.norm(optax.tree.sub(plain, PLAIN)) > 0
