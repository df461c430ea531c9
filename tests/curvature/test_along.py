"""Slopes and curvatures along directions against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nlcg_optax import gauss_newton_along, hessian_along
from tests.curvature.network import (
    cross_entropy,
    dense_gauss_newton,
    dense_hessian,
    flat,
    logits,
    loss,
    network_params,
)


def _directions(count, dtype=jnp.float64):
    return [network_params(dtype, seed=10 + i) for i in range(count)]


def _along(kind, params, directions, wrap=lambda fn: fn):
    if kind == "hessian":
        return hessian_along(wrap(loss), params, directions)
    return gauss_newton_along(wrap(logits), cross_entropy, params, directions)


def _dense(kind, params):
    if kind == "hessian":
        return dense_hessian(loss, params)
    return dense_gauss_newton(logits, cross_entropy, params)


def _check(found, kind, params, directions, rtol):
    span = np.stack([flat(d) for d in directions])
    gradient = flat(jax.grad(loss)(params))
    np.testing.assert_allclose(found.value, loss(params), rtol=rtol)
    np.testing.assert_allclose(found.slopes, span @ gradient, rtol=rtol)
    np.testing.assert_allclose(
        found.matrix, span @ _dense(kind, params) @ span.T, rtol=rtol
    )


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("count", [1, 2])
def test_equals_the_dense_matrix(x64, kind, count):
    params, directions = network_params(), _directions(count)
    # Some tens of operations in float64, and sums of both signs.
    for wrap in (lambda fn: fn, jax.checkpoint):
        found = jax.jit(lambda p, d, w=wrap: _along(kind, p, d, w))(params, directions)
        _check(found, kind, params, directions, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_under_scan_and_vmap(x64, kind):
    params, directions = network_params(), _directions(4)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)
    each = lambda d: _along(kind, params, [d, params]).matrix
    mapped = jax.jit(jax.vmap(each))(stack)
    _, scanned = jax.lax.scan(lambda c, d: (c, each(d)), 0, stack)
    expected = [jax.jit(each)(d) for d in directions]
    np.testing.assert_allclose(mapped, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(scanned, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.devices
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_sharded_parameters(x64, kind):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = {"b": P("x"), "v": P("x"), "w": P(None, "x")}
    params, directions = network_params(), _directions(2)
    place = lambda tree: {
        name: jax.device_put(leaf, NamedSharding(mesh, split[name]))
        for name, leaf in tree.items()
    }
    found = jax.jit(lambda p, d: _along(kind, p, d))(
        place(params), [place(d) for d in directions]
    )
    _check(found, kind, params, directions, 1e-10)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_narrow_dtypes(x64, kind, dtype, rtol):
    # Entries of order one from some hundred roundings, of 8 bits in bfloat16. The
    # directions are wide: they are cast.
    params, directions = network_params(jnp.dtype(dtype)), _directions(1)
    along = jax.jit(lambda p, d: _along(kind, p, d))
    found = along(params, directions)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}
    exact = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    wide = along(exact, directions)
    for mine, reference in zip(found, wide):
        np.testing.assert_allclose(mine, reference, rtol=rtol, atol=rtol)


@pytest.mark.slow
def test_complex_parameters_count_as_two(x64, standard_promotion):
    f = lambda z: jnp.sum(jnp.abs(z) ** 4) + jnp.real(z[0] * z[1] ** 2)
    split = lambda u: jnp.concatenate([u.real, u.imag])
    z, v = jnp.array([1 + 2j, -1 + 0.5j]), jnp.array([0.3 - 1j, 2 + 1j])
    twin = lambda x: f(x[:2] + 1j * x[2:])
    found = jax.jit(lambda z, v: hessian_along(f, z, [v]))(z, v)
    expected = split(v) @ jax.jit(jax.hessian(twin))(split(z)) @ split(v)
    np.testing.assert_allclose(found.matrix, [[expected]], rtol=1e-12)
    np.testing.assert_allclose(
        found.slopes, [jax.grad(twin)(split(z)) @ split(v)], rtol=1e-12
    )


@pytest.mark.slow
def test_outputs_may_be_a_tree(x64):
    params, (d,) = network_params(), _directions(1)
    as_tree = lambda p: {"logits": logits(p), "norm": jnp.sum(p["b"] ** 2)}
    tree_loss = lambda z: cross_entropy(z["logits"]) + 0.5 * z["norm"] ** 2
    found = gauss_newton_along(as_tree, tree_loss, params, [d])
    jacobian = 2 * jnp.vdot(params["b"], d["b"])  # of the norm; its own curvature is 1
    expected = flat(d) @ _dense("gauss_newton", params) @ flat(d) + jacobian**2
    np.testing.assert_allclose(found.matrix, [[expected]], rtol=1e-10)


def test_integer_leaves_take_no_part():
    params = {"x": jnp.array([1.0, 2.0]), "n": jnp.array([3, 4])}
    d = {"x": jnp.ones(2), "n": jnp.zeros(2)}
    f = lambda p: jnp.sum(p["n"].astype(float) * p["x"] ** 2)
    found = hessian_along(f, params, [d])
    assert (float(found.slopes[0]), float(found.matrix[0, 0])) == (22.0, 14.0)


def test_bad_input():
    x = jnp.ones(2)
    with pytest.raises(TypeError, match="value_fn=3 must be callable"):
        hessian_along(3, x, [x])
    with pytest.raises(TypeError, match=r"value_fn must return a real scalar.*\(2,\)"):
        hessian_along(lambda p: p, x, [x])
    with pytest.raises(TypeError, match=r"output_loss_fn must return a real scalar"):
        gauss_newton_along(lambda p: p, lambda z: z, x, [x])
    with pytest.raises(TypeError, match="outputs_fn=None must be callable"):
        gauss_newton_along(None, jnp.sum, x, [x])
    with pytest.raises(ValueError, match=r"directions=\[\] is empty"):
        hessian_along(jnp.sum, x, [])
    with pytest.raises(ValueError, match=r"directions\[1\] has shape \(3,\)"):
        hessian_along(jnp.sum, x, [x, jnp.ones(3)])
