"""Proves that a mesh of one device, as on a laptop, is as good as none."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import NamedSharding
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests.contract.table import AMPLIFYING, each_row, make, step

SPECS = {"b": P("x"), "k": P(None, "x"), "w": P("x")}


def _params():
    shapes = {"b": (40,), "k": (2, 8, 4), "w": (8, 4)}
    return {name: jnp.ones(shape) / 3 for name, shape in shapes.items()}


def _outputs_fn(params):
    """Outputs that are split, as those of a batch are."""
    rest = jnp.sum(jnp.tanh(params["b"])) + jnp.sum(jnp.tanh(params["k"]))
    return jnp.tanh(params["w"]) + rest


@pytest.mark.usefixtures("standard_promotion")
@each_row
def test_explicit_axes_of_one_device_change_no_number(row, request):
    if row.startswith(AMPLIFYING):
        request.getfixturevalue("x64")
    tx = make(row)
    run = jax.jit(lambda params, state: step(tx, params, state, _outputs_fn))
    alone = (_params(), tx.init(_params()))
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(leaf, NamedSharding(mesh, SPECS[name]))
            for name, leaf in _params().items()
        }
        split = (params, tx.init(params))
        types = jax.tree.map(jax.typeof, split)
        for _ in range(2):
            split = run(*split)
        assert jax.tree.map(jax.typeof, split) == types
    for _ in range(2):
        alone = run(*alone)
    # Sums run in another order: roundings, carried through two steps.
    chex.assert_trees_all_close(split[0], alone[0], rtol=1e-4, atol=1e-5)
