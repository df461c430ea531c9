"""Proves that split parameters cost two scalar all-reduces and change no number."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nlcg_optax import (
    large_batch_nlcg,
    nlcg,
    scale_by_diagonal_secant,
    scale_by_kronecker,
    scale_by_nlcg,
    scale_by_orthogonalization,
    scale_by_slope_ratio,
    split_parameters,
    tuning_free_nlcg,
    virtual_batch,
)
from tests.contract.running import FAST, extra_args, make_step
from tests.contract.table import BY_NAME, RATE, chained

pytestmark = pytest.mark.devices

DEVICES = 8
AXIS_TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
SPECS = {"b": P("x"), "w": P(None, "x"), "z": P()}  # z is on every device

each_mesh = pytest.mark.parametrize("kind", ["auto", "explicit"])


def _mesh(kind):
    assert jax.device_count() == DEVICES  # set in tests/conftest.py
    return jax.make_mesh((DEVICES,), ("x",), axis_types=(AXIS_TYPES[kind],))


def _params():
    grid = np.arange(48.0).reshape(3, 16)
    return {
        "b": jnp.asarray(np.cos(np.arange(8.0)), jnp.float32),
        "w": jnp.asarray(np.sin(grid), jnp.float32),
        "z": jnp.asarray([0.5, -1.0, 2.0], jnp.float32),
    }


def _loss(params):
    b, w, z = params["b"], params["w"], params["z"]
    bowl = jnp.sum(0.5 * w**2) + 2.0 * jnp.sum((b - 1.0) ** 2) + jnp.sum(z**2)
    return bowl + jnp.sum(jnp.log1p(w**2)) + jnp.sum(jnp.log1p(z**2)) ** 2


def _sharded(mesh):
    return jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
        _params(),
        SPECS,
        is_leaf=lambda x: isinstance(x, P),
    )


def _one_device_run(row, steps=3):
    tx = row.make()
    step = jax.jit(make_step(row, tx, _loss))
    carry = (_params(), tx.init(_params()))
    for _ in range(steps):
        carry = step(*carry)
    return carry


COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)


def _collectives(hlo):
    """All (name, shape of the result) of collective operations in compiled HLO."""
    pattern = rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\("
    return [(name, shape) for shape, name in re.findall(pattern, hlo)]


def test_the_counter_of_collectives_sees_them():
    mesh = _mesh("auto")
    x = jax.device_put(jnp.ones(8), NamedSharding(mesh, P("x")))
    dot = jax.jit(lambda x: jnp.sum(x * x)).lower(x).compile().as_text()
    assert [name for name, _ in _collectives(dot)] == ["all-reduce"]
    gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
    names = [n for n, _ in _collectives(gather.lower(x).compile().as_text())]
    assert names == ["all-gather"]


# The identity, with a rule that keeps one tree, two trees and all products, and the
# paper's preconditioner.
HLO_CASES = {
    "fr": nlcg(RATE, "fr"),
    "pr+": nlcg(RATE, "pr+"),
    "hz": chained(RATE, rule="hz", restart="powell"),
    "per_leaf": chained(RATE, rule="pr+", scope="per_leaf"),
    "secant": nlcg(RATE, "fr", preconditioner=scale_by_diagonal_secant(RATE)),
    "secant_params": nlcg(RATE, preconditioner=scale_by_diagonal_secant()),
    "slope_ratio": scale_by_slope_ratio(scale_by_nlcg("pr+")),
}
# The slope at the end of the last step is known before the direction.
MOST_ALL_REDUCES = {"slope_ratio": 3}


@each_mesh
@pytest.mark.parametrize("name", HLO_CASES)
def test_two_scalar_all_reduces_and_nothing_else(name, kind):
    mesh, tx = _mesh(kind), HLO_CASES[name]

    def update(grads, state, params):
        return tx.update(grads, state, params, value=1.0)

    with jax.set_mesh(mesh):
        params = _sharded(mesh)
        state = jax.jit(tx.init)(params)
        hlo = jax.jit(update).lower(params, state, params).compile().as_text()
    found = _collectives(hlo)
    assert 1 <= len(found) <= MOST_ALL_REDUCES.get(name, 2), found
    assert {op for op, _ in found} == {"all-reduce"}
    # Every operand is a scalar (or, per leaf, one number a leaf): no parameter moves.
    shapes = [s for _, result in found for s in re.findall(r"\[([\d,]*)\]", result)]
    assert shapes
    assert all(np.prod([int(n) for n in s.split(",") if n] or [1]) <= 8 for s in shapes)
    if name != "per_leaf":
        assert set(shapes) == {""}


SHARDED = [
    pytest.param(name, kind, marks=[] if name in FAST else [pytest.mark.slow])
    for name in (
        "pr+",
        "per_leaf",
        "rms",
        "secant_rate",
        "secant_params",
        "secant_hvp",
        "hutchinson",
        "curvature_step",
        "subspace_step",
        "slope_ratio",
        "paper_layerwise",
        "search",
    )
    for kind in AXIS_TYPES
]


@pytest.mark.parametrize(("name", "kind"), SHARDED)
def test_a_sharded_run_has_the_numbers_of_one_device(name, kind):
    """And the state is laid out like the parameters, from `init` to the last step."""
    row, mesh = BY_NAME[name], _mesh(kind)
    tx = row.make()
    with jax.set_mesh(mesh):
        params = _sharded(mesh)
        carry = (params, tx.init(params))
        types = jax.tree.map(jax.typeof, carry)
        step = jax.jit(make_step(row, tx, _loss))
        for _ in range(3):
            carry = step(*carry)
        after = jax.tree.map(jax.typeof, carry)
    if not row.searches:  # those of Optax's searches are weakly typed at first
        assert after == types
    expected = _one_device_run(row)
    # Sums run in another order: roundings, carried through three steps.
    chex.assert_trees_all_close(
        jax.device_get(carry[0]), expected[0], rtol=2e-5, atol=2e-6
    )
    direction = optax.tree.get(carry[1], "direction")
    for name, spec in SPECS.items():
        wanted = NamedSharding(mesh, spec)
        for leaf in (carry[0][name], direction[name]):
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
        if kind == "explicit":
            assert jax.typeof(direction[name]) == jax.typeof(params[name])


# --- parameters split by hand --------------------------------------------------------


def _split_params():
    # All but z, which every device would count once more.
    return {name: leaf for name, leaf in _params().items() if name != "z"}


def _split_gradient(params):
    w, b = params["w"], params["b"]
    return {"b": 4.0 * (b - 1.0), "w": w + 2 * w / (1 + w**2)}


def _split_run(make, steps, axis_name):
    """Three steps on the devices' own parts; axis_name is None on one device."""
    tx = make()
    if axis_name is not None:
        tx = split_parameters(tx, axis_name)

    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(_split_gradient(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        betas = optax.tree.get(state, "beta")[None]  # one a device
        return params, betas, optax.tree.get(state, "grad_norm")[None]

    return run


SPLIT = {
    "pr+": lambda: nlcg(RATE, "pr+"),
    "hz": lambda: chained(RATE, rule="hz"),
    "per_leaf": lambda: chained(RATE, rule="pr+", scope="per_leaf"),
    "secant": lambda: nlcg(RATE, "fr", preconditioner=scale_by_diagonal_secant(RATE)),
}


@pytest.mark.parametrize("name", SPLIT)
def test_shard_map_of_split_parameters_gives_the_unsplit_numbers(name):
    mesh, params = _mesh("auto"), _split_params()
    specs = {"b": P("x"), "w": P(None, "x")}

    def on_devices(axis_name):
        return jax.jit(
            jax.shard_map(
                _split_run(SPLIT[name], 3, axis_name),
                mesh=mesh,
                in_specs=(specs,),
                out_specs=(specs, P("x"), P("x")),
                check_vma=False,
            )
        )(params)

    expected = jax.jit(_split_run(SPLIT[name], 3, None))(params)
    out, betas, norms = on_devices("x")
    chex.assert_trees_all_close(jax.device_get(out), expected[0], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(betas, jnp.repeat(expected[1], DEVICES), rtol=1e-4)
    np.testing.assert_allclose(norms, jnp.repeat(expected[2], DEVICES), rtol=1e-4)
    if name == "pr+":  # without the name every device takes a gradient norm of its own
        assert np.ptp(on_devices(None)[2]) > 0.1


@pytest.mark.parametrize("name", ["pr+", "secant"])
def test_pmap_of_split_parameters_gives_the_unsplit_numbers(name):
    params = _split_params()
    parts = {
        "b": params["b"].reshape(DEVICES, -1),
        "w": params["w"].reshape(3, DEVICES, -1).swapaxes(0, 1),
    }
    out, betas, norms = jax.pmap(_split_run(SPLIT[name], 3, "x"), axis_name="x")(parts)
    expected = jax.jit(_split_run(SPLIT[name], 3, None))(params)
    joined = {
        "b": np.asarray(out["b"]).reshape(-1),
        "w": np.asarray(out["w"]).swapaxes(0, 1).reshape(3, -1),
    }
    chex.assert_trees_all_close(joined, expected[0], rtol=2e-5, atol=2e-6)
    for mine, other in ((betas, expected[1]), (norms, expected[2])):
        np.testing.assert_allclose(mine[:, 0], jnp.repeat(other, DEVICES), rtol=1e-4)


# All that test the entries of a gradient one by one, and the presets made of them.
REFUSING = {
    "virtual_batch": lambda: virtual_batch(nlcg(RATE, "fr"), 2),
    "kronecker": lambda: scale_by_kronecker(refresh_period=2),
    "orthogonal": scale_by_orthogonalization,
    "large_batch_nlcg": lambda: large_batch_nlcg(RATE),
    "tuning_free_nlcg": tuning_free_nlcg,
}


@pytest.mark.parametrize("name", REFUSING)
def test_a_part_that_is_not_finite_is_refused_on_every_device(name, x64):
    """One device has a leaf for each part, as a part counts as a matrix of its own."""
    parts, steps, bad_step, bad_part = 4, 6, 2, 3
    rng = np.random.default_rng(0)
    grads = {
        "b": jnp.asarray(rng.normal(size=(steps, parts * 2))),
        "w": jnp.asarray(rng.normal(size=(steps, parts * 3, 2))),
    }
    grads["w"] = grads["w"].at[bad_step, 3 * bad_part].set(jnp.nan)
    values = 1 / jnp.arange(1.0, steps + 1)

    def run(tx, grads):
        tx = optax.with_extra_args_support(tx)
        params = jax.tree.map(lambda g: jnp.ones_like(g[0]), grads)

        def step(state, given):
            grad, value = given
            updates, state = tx.update(grad, state, params, value=value)
            return state, updates

        state, updates = jax.lax.scan(step, tx.init(params), (grads, values))
        return updates, [x for x in jax.tree.leaves(state) if x.ndim == 0]

    separate = jax.tree.map(lambda g: jnp.split(g, parts, axis=1), grads)
    updates, expected = jax.jit(lambda g: run(REFUSING[name](), g))(separate)
    split = jax.shard_map(
        lambda g: run(split_parameters(REFUSING[name](), "x"), g),
        mesh=jax.make_mesh((parts,), ("x",), axis_types=(AxisType.Auto,)),
        in_specs=(P(None, "x"),),
        out_specs=(P(None, "x"), P()),  # JAX checks that no scalar varies
    )
    on_devices, scalars = jax.jit(split)(grads)
    joined = {key: jnp.concatenate(leaf, axis=1) for key, leaf in updates.items()}
    chex.assert_trees_all_close(on_devices, joined, rtol=1e-6, atol=1e-9)
    chex.assert_trees_all_close(scalars, expected, rtol=1e-6)


# --- data parallelism ----------------------------------------------------------------


DATA_PARALLEL = [
    *((name, False) for name in ("pr+", "secant_rate", "paper_pr_online")),
    # Without the check of varying axes JAX takes the gradient of an averaged loss to
    # be that of the own share, so `value_fn` is differentiated with the check on.
    *((name, True) for name in ("pr+", "paper_pr_online", "secant_hvp")),
    *(
        pytest.param(name, True, marks=pytest.mark.slow)
        for name in ("hutchinson", "curvature_step", "subspace_step", "slope_ratio")
    ),
]


@pytest.mark.parametrize(("name", "check_vma"), DATA_PARALLEL)
def test_data_parallel_shard_map_is_the_big_batch(name, check_vma):
    """Gradients and losses are averaged; nothing else is told to the optimizer."""
    row, mesh = BY_NAME[name], _mesh("auto")
    x = jnp.asarray(np.sin(np.arange(48.0)).reshape(16, 3), jnp.float32)
    y = jnp.asarray(np.cos(np.arange(16.0)), jnp.float32)
    tx, start = row.make(), jnp.array([0.5, -1.0, 2.0])

    def loss(params, x, y):
        return jnp.mean((jnp.tanh(x @ params) - y) ** 2)

    def run(params, x, y, average):
        def value_fn(params):  # the loss of the whole batch
            return average(loss(params, x, y))

        def step(carry, _):
            params, state = carry
            if check_vma:
                value, grad = jax.value_and_grad(value_fn)(params)
            else:
                value, grad = average(jax.value_and_grad(loss)(params, x, y))
            known = extra_args(row, value, grad, value_fn)
            updates, state = tx.update(grad, state, params, **known)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=4)[0][0]

    def on_devices(params, x, y):
        return run(params, x, y, lambda tree: jax.lax.pmean(tree, "x"))

    split = jax.jit(
        jax.shard_map(
            on_devices,
            mesh=mesh,
            in_specs=(P(), P("x"), P("x")),
            out_specs=P(),
            check_vma=check_vma,
        )
    )
    expected = jax.jit(lambda p: run(p, x, y, lambda tree: tree))(start)
    np.testing.assert_allclose(split(start, x, y), expected, rtol=2e-5, atol=2e-6)
    assert loss(expected, x, y) < loss(start, x, y)
