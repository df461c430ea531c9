"""Proves that every part runs on a mesh with explicit axes, whatever is split.

A mesh of ``jax.make_mesh`` is such a one by default: every array says how it is split,
and JAX refuses what it would have to guess.
"""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.contract.running import (
    FAST,
    OF_SCALARS,
    OPTAX_SEARCHES,
    ModelLoss,
    amplifies,
    each_row,
    each_row_with_one,
    extra_args,
    make_step,
)
from tests.contract.table import BY_NAME

pytestmark = pytest.mark.devices

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
    # Of squares, for matrices of full rank: polar factors of others are ill-posed.
    shapes = {"b": (8,), "k": (2, 4, 4), "w": (8, 4)}
    return {
        name: jnp.sin(jnp.arange(float(np.prod(shape))) ** 2).reshape(shape)
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


def _sum(outputs):
    return jnp.sum(outputs)


LOSS = ModelLoss(_outputs_fn, _sum)


def _eager_step(row, tx):
    """All but the derivative, for which JAX needs a mesh that is set, or `jit`."""
    value_and_grad = jax.jit(jax.value_and_grad(LOSS))

    def step(params, state):
        value, grad = value_and_grad(params)
        known = extra_args(row, value, grad, LOSS)
        updates, state = tx.update(grad, state, params, **known)
        return optax.apply_updates(params, updates), state

    return step


def _run(row, params, jitted=True):
    """Three steps, and the types of parameters and state before and after."""
    tx = row.make()
    step = make_step(row, tx, LOSS) if jitted else _eager_step(row, tx)
    carry = params, tx.init(params)
    before = jax.tree.map(jax.typeof, carry)
    step = jax.jit(step) if jitted else step
    for _ in range(3):
        carry = step(*carry)
    return carry[0], before, jax.tree.map(jax.typeof, carry)


def _check(row, layout, mesh, request):
    if amplifies(row):
        request.getfixturevalue("x64")
    with jax.set_mesh(mesh):
        run = _run(row, _placed(mesh, layout))
    _check_run(row, *run)


def _check_run(row, params, before, after):
    assert after == before  # jax.typeof says how an array is split
    expected, _, _ = _run(row, _params())
    # Sums run in another order: roundings, carried through three steps.
    chex.assert_trees_all_close(jax.device_get(params), expected, rtol=2e-5, atol=2e-6)


# What must say how it is split says so while it is traced.
@each_row(without=OF_SCALARS | OPTAX_SEARCHES)
def test_no_layout_changes_a_type(row):
    mesh, tx = _mesh(), row.make()
    step = make_step(row, tx, LOSS)
    for layout in LAYOUTS:
        with jax.set_mesh(mesh):
            params = _placed(mesh, layout)
            carry = params, tx.init(params)
            after = jax.eval_shape(step, *carry)
        for x, old in zip(jax.tree.leaves(after), jax.tree.leaves(carry), strict=True):
            kept = jax.typeof(old)
            assert (x.shape, x.dtype) == (kept.shape, kept.dtype), layout
            assert x.sharding.spec == kept.sharding.spec, layout


@each_row_with_one(
    "layout",
    list(LAYOUTS),
    without=OF_SCALARS | OPTAX_SEARCHES,
    fast=("kronecker",),
)
def test_a_run_has_the_types_it_began_with_and_the_numbers_of_one_device(
    row, layout, request
):
    _check(row, layout, _mesh(), request)


@pytest.mark.slow
@each_row(names=FAST)
def test_an_eager_run_without_set_mesh_has_the_numbers_of_one_device(row, request):
    if amplifies(row):
        request.getfixturevalue("x64")
    # Eager operations are many programs at once; on two cores, collectives of more
    # devices than that can wait for each other forever.
    _check_run(row, *_run(row, _placed(_mesh((2, 1)), "both"), jitted=False))


@pytest.mark.slow
@each_row(names=FAST)
def test_axes_of_one_device_change_no_number(row, request):
    """A mesh of one device, as on a laptop, is as good as none."""
    _check(row, "both", _mesh((1, 1)), request)


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
