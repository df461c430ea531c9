"""Proves that devices may have problems of their own, and what cannot be split."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nlcg_optax as n
from nlcg_optax.dtypes import with_standard_promotion
from tests.contract.running import (
    OF_SCALARS,
    OPTAX_SEARCHES,
    each_row,
    make_step,
    small_loss,
    small_params,
)
from tests.contract.table import BY_NAME

pytestmark = pytest.mark.devices


MUON = with_standard_promotion(optax.contrib.scale_by_muon())
CANNOT = {
    "zoom": ("linesearch", BY_NAME["zoom"].make()),
    "backtracking": ("linesearch", BY_NAME["backtracking"].make()),
    "preconditioner": ("preconditioner", n.nlcg(0.1, preconditioner=MUON)),
    "diagonal": ("diagonal", n.scale_by_kronecker(diagonal=MUON)),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_run_on_explicit_axes_says_so(name):
    """Optax's own take products of split arrays without saying where they live."""
    argument, tx = CANNOT[name]
    row = BY_NAME["zoom"]  # for its extra arguments
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    one_step = make_step(row, tx, lambda w: jnp.sum(jnp.cosh(w - 0.5)))
    with jax.set_mesh(mesh):
        w = jax.device_put(jnp.ones([4, 2]), NamedSharding(mesh, P("x")))
        state = tx.init(w)
        with pytest.raises(
            ValueError, match=rf"(?s)^{argument} cannot run .*AxisType\.Auto"
        ):
            jax.eval_shape(one_step, w, state)


def _mesh():
    return jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))


@each_row(fast=None, without=OF_SCALARS | OPTAX_SEARCHES)
def test_the_check_of_varying_axes_passes(row):
    """Traced only: problems of each device, of all devices, and split over them."""
    tx = row.make()
    step = make_step(row, tx, small_loss)
    split_tx = n.split_parameters(tx, "x")
    split_loss = small_loss._replace(
        outputs_fn=lambda part: jax.lax.psum(small_loss.outputs_fn(part), "x")
    )
    split_step = make_step(row, split_tx, split_loss)

    def scan(tx, step, params):
        carry = (params, tx.init(params))
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=2)[0][0]

    def own_problem(parts):
        params = jax.tree.map(lambda x: x[0], parts)
        carry = (params, tx.init(params))
        for _ in range(2):
            carry = step(*carry)
        return jax.tree.map(lambda x: x[None], carry[0])

    same_problem = functools.partial(scan, tx, step)
    split_problem = functools.partial(scan, split_tx, split_step)
    many = jax.tree.map(lambda x: jnp.stack([x] * jax.device_count()), small_params())
    for fn, params, spec in (
        (own_problem, many, P("x")),
        (same_problem, small_params(), P()),
        (split_problem, jax.tree.map(jnp.concatenate, many), P("x")),
    ):
        mapped = jax.shard_map(fn, mesh=_mesh(), in_specs=spec, out_specs=spec)
        out = jax.eval_shape(mapped, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(out, params)


@pytest.mark.parametrize("part", ["pr+", "kronecker", "secant_params", "search"])
def test_shard_map_solves_one_problem_per_device(part):
    """With the default check of varying axes."""
    row, mesh = BY_NAME[part], _mesh()
    tx, count = row.make(), jax.device_count()
    starts = jnp.sin(jnp.arange(count * 6.0)).reshape(count, 3, 2) + 1

    def run(start):
        one_step = make_step(row, tx, lambda w: jnp.sum(jnp.cosh(w - 0.5)))
        carry = (start, tx.init(start))
        for _ in range(2):
            carry = one_step(*carry)
        return carry[0]

    def on_device(part):
        return run(part[0])[None]

    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    expected = jnp.stack([jax.jit(run)(start) for start in starts])
    # Another program: roundings, carried through two steps.
    np.testing.assert_allclose(jax.jit(mapped)(starts), expected, rtol=1e-4, atol=1e-5)


def quartic(x, target):
    return jnp.sum((x - target) ** 4 + (x - target) ** 2)


MINIMIZED = {
    "arguments": lambda t: n.minimize(quartic, jnp.zeros(2), (t,)),
    "closed over": lambda t: n.minimize(lambda x: quartic(x, t), jnp.zeros(2)),
    "starts": lambda t: n.minimize(lambda x: quartic(x, jnp.tanh(x)), t),
    "a derivative of its own": lambda t: n.minimize(
        lambda x: quartic(x, t) + jnp.sum(jax.nn.relu(x - t) ** 2), jnp.zeros(2)
    ),
    "two terms": lambda t: n.minimize(quartic, jnp.zeros(2), (t,), method="hs+"),
    "resumed": lambda t: n.minimize(
        quartic,
        jnp.zeros(2),
        (t,),
        state=n.minimize(quartic, jnp.zeros(2), (t,), max_iterations=2).state,
    ),
}


@pytest.mark.parametrize("name", MINIMIZED)
def test_minimize_solves_one_problem_per_device(name):
    """With the default check of varying axes; each ends when it has converged."""
    solve, count = MINIMIZED[name], jax.device_count()
    targets = jnp.cumsum(jnp.ones([count, 2]), axis=0) ** 2

    def on_device(part):
        result = solve(part[0])
        return result.x[None], result.nit[None], result.success[None]

    mapped = jax.shard_map(on_device, mesh=_mesh(), in_specs=P("x"), out_specs=P("x"))
    x, nit, success = jax.jit(mapped)(targets)
    expected = solve(targets[-1])
    assert success.all()
    np.testing.assert_allclose(x[-1], expected.x, rtol=1e-5)
    assert nit[-1] == expected.nit
    if name != "starts":
        np.testing.assert_allclose(x, targets, rtol=1e-4)


@pytest.mark.parametrize("name", ["arguments", "closed over"])
def test_derivatives_of_minimizers_on_each_device(name):
    """Through `shard_map` and within it: the minimizer is the target itself."""
    solve, count = MINIMIZED[name], jax.device_count()
    targets = jnp.cumsum(jnp.ones([count, 2]), axis=0)
    weights = jnp.arange(1.0, 2 * count + 1).reshape(count, 2)

    def on_device(part):
        return solve(part[0]).x[None]

    def slope_on_device(part):
        return jax.grad(lambda t: jnp.sum(solve(t).x))(part[0])[None]

    spec = {"mesh": _mesh(), "in_specs": P("x"), "out_specs": P("x")}
    mapped = jax.shard_map(on_device, **spec)
    slopes = jax.jit(jax.grad(lambda t: jnp.sum(weights * mapped(t))))(targets)
    np.testing.assert_allclose(slopes, weights, rtol=1e-3)
    within = jax.jit(jax.shard_map(slope_on_device, **spec))(targets)
    np.testing.assert_allclose(within, jnp.ones([count, 2]), rtol=1e-3)
