"""Proves that every part runs on a mesh with explicit axes, whatever is split.

A mesh of ``jax.make_mesh`` is such a one by default: every array says how it is split,
and JAX refuses what it would have to guess.
"""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.contract import table
from tests.contract.cases import BY_NAME
from tests.contract.table import AMPLIFYING, make, step

pytestmark = [pytest.mark.devices, pytest.mark.usefixtures("standard_promotion")]

LAYOUTS = {
    "replicated": {"b": P(), "k": P(), "w": P()},
    "rows": {"b": P("x"), "k": P(None, "x", None), "w": P("x", None)},
    "columns": {"b": P("y"), "k": P(None, None, "x"), "w": P(None, "y")},
    "both": {"b": P(("x", "y")), "k": P("y", "x", None), "w": P("x", "y")},
}


def _mesh(shape=(4, 2)):
    return jax.make_mesh(
        shape,
        ("x", "y"),
        axis_types=(AxisType.Explicit,) * 2,
        devices=jax.devices()[: shape[0] * shape[1]],
    )


def _params():
    shapes = {"b": (8,), "k": (2, 4, 4), "w": (8, 4)}
    return {
        name: jnp.sin(jnp.arange(float(np.prod(shape)))).reshape(shape)
        for name, shape in shapes.items()
    }


def _outputs_fn(params):
    squares = [jnp.sum((params[name] - x) ** 2) for name, x in zip("bkw", (1, 0.3, 0))]
    bend = jnp.sum(jnp.log1p(params["w"] ** 2)) ** 2
    return jnp.stack([*squares, 0.1 * bend])


def _placed(mesh, layout):
    specs = LAYOUTS[layout]
    return {
        name: jax.device_put(x, NamedSharding(mesh, specs[name]))
        for name, x in _params().items()
    }


def _run(tx, params, jitted):
    """Three steps, and the types of parameters and state before and after."""

    def one_step(params, state):
        return step(tx, params, state, _outputs_fn)

    carry = params, tx.init(params)
    before = jax.tree.map(jax.typeof, carry)
    one_step = jax.jit(one_step) if jitted else one_step
    for _ in range(3):
        carry = one_step(*carry)
    return carry[0], before, jax.tree.map(jax.typeof, carry)


FAST = [("kronecker", "both", True), ("orthogonalization", "both", True)]


@pytest.mark.parametrize(
    ("row", "layout", "jitted"),
    [
        pytest.param(*x, marks=[] if x in FAST else [pytest.mark.slow])
        for x in [
            *((row, layout, True) for row in table.ROWS for layout in LAYOUTS),
            *((row, "both", False) for row in sorted(table.FAST)),
        ]
    ],
)
def test_a_run_has_the_types_it_began_with_and_the_numbers_of_one_device(
    row, layout, jitted, request
):
    if row.startswith(AMPLIFYING):
        request.getfixturevalue("x64")
    # Eager operations are many programs at once; on two cores, collectives of more
    # devices than that can wait for each other forever.
    mesh = _mesh() if jitted else _mesh((2, 1))
    with jax.set_mesh(mesh):
        params, before, after = _run(make(row), _placed(mesh, layout), jitted)
    assert after == before  # jax.typeof says how an array is split
    expected, _, _ = _run(make(row), _params(), jitted=True)
    # Sums run in another order: roundings, carried through three steps.
    chex.assert_trees_all_close(jax.device_get(params), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["kronecker", "orthogonal"])
def test_only_a_split_matrix_is_gathered(name):
    """On an explicit mesh no more is moved than on an automatic one."""
    counts = {}
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
        for layout in ("replicated", "both"):
            with jax.set_mesh(mesh):
                params = _placed(mesh, layout)
                tx = BY_NAME[name].make()
                state = jax.jit(tx.init)(params)
                update = jax.jit(lambda g, s, p, tx=tx: tx.update(g, s, p))
                hlo = update.lower(params, state, params).compile().as_text()
            counts[kind, layout] = len(re.findall(r" all-gather(?:-start)?\(", hlo))
    assert counts[AxisType.Explicit, "replicated"] == 0
    assert 0 < counts[AxisType.Explicit, "both"] <= 2 * counts[AxisType.Auto, "both"]
