"""Proves that parameters of every kind of leaf are taken, also without data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.contract.cases import BY_NAME, CASES, ids, make_step

TREES = {
    "numbers": {"slope": 1.0, "intercept": 2.0},
    "numpy": {"slope": np.float32(1.0), "w": np.ones([2, 3], np.float32)},
    "scalars": {"slope": jnp.float32(1.0), "w": jnp.ones([2, 3])},
    "zero size": {"v": jnp.zeros(0), "w": jnp.zeros([0, 3]), "u": jnp.ones([2, 2])},
    "nothing": {"w": jnp.zeros([0, 3])},
    "None": {"b": None, "w": jnp.ones([2, 2])},
    "names of fields": {
        name: jnp.ones([2, 2])
        for name in (
            *("value", "grad", "value_fn", "params", "count", "direction", "rows"),
            *("diagnostics", "factors", "preconditioner_state", "learning_rate"),
        )
    },
    "tuple and list": (jnp.ones(2), [jnp.ones([2, 2])]),
}
FEW = ("numbers", "zero size", "names of fields")


def loss(params):
    squares = [jnp.sum((jnp.asarray(x) - 3.0) ** 2) for x in jax.tree.leaves(params)]
    return sum(squares, jnp.float32(0.0))


def abstract(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype), tree
    )


def types(tree):
    return jax.tree.map(
        lambda x: (x.shape, x.dtype, bool(getattr(x, "weak_type", False))), tree
    )


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "name", [pytest.param(t, marks=[] if t in FEW else pytest.mark.slow) for t in TREES]
)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_init_and_update_with_and_without_data(case, name):
    """`init` of shapes, of arrays and under `eval_shape` agree; `update` keeps them."""
    tx, params = case.make(), TREES[name]
    shapes = abstract(params)
    state = jax.eval_shape(tx.init, shapes)
    expected = types(state)
    assert jax.tree.structure(tx.init(params)) == jax.tree.structure(state)
    assert types(tx.init(params)) == expected
    assert types(tx.init(shapes)) == expected
    new_params, new_state = jax.eval_shape(make_step(case, tx, loss), shapes, state)
    assert types(new_state) == expected
    assert types(new_params) == types(shapes)


@pytest.mark.parametrize("name", ["pr+", "secant_params", "paper_fr_step", "search"])
def test_numbers_are_the_arrays_of_them(name):
    """Bit for bit, un-jitted: the gradients of numbers are weakly typed arrays."""
    case = BY_NAME[name]
    tx = case.make()
    step = make_step(case, tx, loss)
    numbers = {"intercept": 2.0, "slope": 1.0}
    arrays = jax.tree.map(jnp.float32, numbers)
    one, other = (numbers, tx.init(numbers)), (arrays, tx.init(arrays))
    for _ in range(2):
        one, other = step(*one), step(*other)
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        np.testing.assert_array_equal(mine, theirs)
    assert loss(one[0]) < loss(numbers)


@pytest.mark.parametrize("name", ["pr+", "kronecker", "secant_params", "search"])
def test_whole_numbers_are_refused_by_name(name):
    with pytest.raises(TypeError, match=r"leaf \['slope'\] has dtype int32"):
        BY_NAME[name].make().init({"slope": 1, "w": jnp.ones(2)})


def test_numbers_given_to_update_alone():
    tx = BY_NAME["pr+"].make()
    state = tx.init({"slope": jnp.float32(1.0)})
    updates, _ = tx.update({"slope": 2.0}, state, {"slope": 1.0})
    np.testing.assert_allclose(updates["slope"], -0.05 * 2.0, rtol=1e-6)
    assert optax.apply_updates({"slope": 1.0}, updates)["slope"].dtype == jnp.float32
