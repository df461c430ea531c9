"""`scale_by_orthogonalization` against singular value decompositions in float64."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import (
    diagnostics,
    nlcg,
    scale_by_diagonal_secant,
    scale_by_kronecker,
    scale_by_orthogonalization,
)

# Newton-Schulz with these coefficients converges, unlike with Muon's.
CONVERGENT = {"coefficients": (15 / 8, -5 / 4, 3 / 8), "steps": 14}
MUON = (3.4445, -4.775, 2.0315)


def polar(matrix):
    u, _, vh = np.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def applied(tx, grads):
    return jax.jit(tx.update)(grads, tx.init(grads), grads)[0]


def test_the_polar_factor_of_tall_wide_convolution_and_stack(x64):
    grads = {
        "tall": random(7, 3),
        "wide": random(3, 5),
        "conv": random(3, 3, 2, 4),
        "stack": random(2, 4, 3),
    }
    numbers = optax.contrib.MuonDimensionNumbers
    tx = scale_by_orthogonalization(
        **CONVERGENT,
        weight_dimension_numbers={
            "tall": numbers(),
            "wide": numbers(0, 1),
            "conv": numbers((0, 1, 2), 3),
            "stack": numbers(-2, -1),
        },
    )
    z = applied(tx, jax.tree.map(jnp.asarray, grads))
    expected = {
        "tall": polar(grads["tall"]),
        "wide": polar(grads["wide"]),
        "conv": polar(grads["conv"].reshape(18, 4)).reshape(3, 3, 2, 4),
        "stack": polar(grads["stack"]),
    }
    # Optax holds the coefficients as float32 has them; they sum to one exactly.
    chex.assert_trees_all_close(z, expected, rtol=1e-7, atol=1e-7)


def test_muons_steps_to_the_number_at_any_scale(x64):
    grad = random(6, 4)
    x = (grad / np.linalg.norm(grad)).T
    a, b, c = (float(np.float32(v)) for v in MUON)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    for scale in (1.0, 1e-30, 1e30):
        z = applied(scale_by_orthogonalization(), jnp.asarray(scale * grad))
        # The term 1e-8 in the norm of Optax's iteration.
        np.testing.assert_allclose(z, x.T, rtol=1e-6, atol=1e-7)


def test_each_step_has_its_own_coefficients(x64):
    grad, found, convergent = random(3, 2), [], CONVERGENT["coefficients"]
    for order in ((MUON, convergent), (convergent, MUON)):
        x = (grad / np.linalg.norm(grad)).T
        for triple in order:
            a, b, c = (float(np.float32(v)) for v in triple)
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        tx = scale_by_orthogonalization(steps=2, coefficients=order)
        z = applied(tx, jnp.asarray(grad))
        np.testing.assert_allclose(z, x.T, rtol=1e-6, atol=1e-7)  # as above
        found.append(z)
    assert np.abs(found[0] - found[1]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["spectral", "aol", "schatten"])
def test_every_normalization_leads_to_singular_values_near_one(normalization):
    tx = scale_by_orthogonalization(normalization=normalization)
    z = applied(tx, jnp.asarray(random(4, 6), jnp.float32))
    singular = np.linalg.svd(z, compute_uv=False)
    # The band that Muon's coefficients lead to.
    assert ((singular > 0.65) & (singular < 1.25)).all()


def test_restored_norm_makes_the_product_of_second_degree(x64):
    grads = {"w": jnp.asarray(random(5, 3)), "v": jnp.asarray(random(2, 2, seed=1))}
    tx = scale_by_orthogonalization(**CONVERGENT, restore_norm=True)
    z, z2 = applied(tx, grads), applied(tx, jax.tree.map(lambda g: 3 * g, grads))
    for name, grad in grads.items():
        expected = polar(grad) * np.linalg.norm(grad) / np.linalg.norm(polar(grad))
        np.testing.assert_allclose(z[name], expected, rtol=1e-6, atol=1e-7)
        products = [np.vdot(g, w) for g, w in ((grad, z[name]), (3 * grad, z2[name]))]
        np.testing.assert_allclose(products[1], 9 * products[0], rtol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [
        jnp.float16,
        pytest.param(jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param(jnp.complex64, marks=pytest.mark.slow),
    ],
)
def test_dtypes_are_kept_and_computed_wide(dtype):
    w, b = random(6, 4), np.array([2.0, -7.0])
    if dtype == jnp.complex64:
        w = w + 1j * random(6, 4, seed=1)
    grads = {"w": jnp.asarray(w).astype(dtype), "b": jnp.asarray(b).astype(dtype)}
    # Small enough for squares to underflow in float16.
    grads = jax.tree.map(lambda g: g * jnp.asarray(2.0**-12, dtype), grads)
    z = applied(scale_by_orthogonalization(**CONVERGENT), grads)
    chex.assert_trees_all_equal_dtypes(z, grads)
    eps = float(jnp.finfo(dtype).eps)
    expected = polar(np.asarray(grads["w"].astype(jnp.complex64)).astype(complex))
    # One rounding of entries of at most one, after float32.
    np.testing.assert_allclose(
        np.asarray(z["w"].astype(jnp.complex64)), expected, atol=eps + 1e-5
    )
    b = np.asarray(z["b"].astype(jnp.complex64)).real
    # Optax adds 1e-8 to a root mean square of 5e-4 and more.
    np.testing.assert_allclose(b, [1.0, -1.0], rtol=eps + 3e-5)


def test_zero_gradient_gives_zero_and_nan_leaves_the_state():
    grads = {"w": jnp.zeros([2, 2]), "b": jnp.ones([2])}
    tx = scale_by_orthogonalization(restore_norm=True)
    update = jax.jit(tx.update)
    z, state = update(grads, tx.init(grads))
    np.testing.assert_array_equal(z["w"], 0)
    broken = {"w": grads["w"], "b": jnp.array([1.0, jnp.nan])}
    chex.assert_trees_all_equal(update(broken, state)[1], state)


def test_vectors_take_the_transformation_that_was_given():
    grads = {"w": jnp.eye(2), "b": jnp.array([3.0])}
    tx = scale_by_orthogonalization(vectors=optax.scale(2.0))
    assert applied(tx, grads)["b"] == 6.0
    as_vectors = scale_by_orthogonalization(
        vectors=optax.scale(2.0),
        weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: None, tree),
    )
    np.testing.assert_array_equal(applied(as_vectors, grads)["w"], 2 * np.eye(2))


def test_with_constant_beta_it_is_momentum_behind_the_same_step():
    grads = [jnp.asarray(random(4, 3, seed=s), jnp.float32) for s in range(4)]
    tx = nlcg(0.1, 0.9, preconditioner=scale_by_orthogonalization())
    peer = optax.chain(
        scale_by_orthogonalization(), optax.trace(0.9), optax.scale(-0.1)
    )
    state, peer_state, update = (
        tx.init(grads[0]),
        peer.init(grads[0]),
        jax.jit(tx.update),
    )
    for grad in grads:
        mine, state = update(grad, state, grad)
        other, peer_state = peer.update(grad, peer_state)
        if diagnostics(state)["restarted"]:  # where the sum would not descend
            peer_state = (peer_state[0], optax.TraceState(mine / -0.1), peer_state[2])
            other = mine
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.devices
@pytest.mark.slow
def test_a_matrix_split_along_its_long_side_is_not_gathered():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    long = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", None))
    grad = jax.device_put(jnp.asarray(random(64, 4), jnp.float32), long)
    tx = scale_by_orthogonalization()
    state = tx.init(grad)
    compiled = jax.jit(tx.update).lower(grad, state, grad).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "permute"))
    split, _ = compiled(grad, state, grad)
    whole = applied(tx, jnp.asarray(random(64, 4), jnp.float32))
    # Sums in another order, through five steps of a map with a slope of up to 3.4.
    np.testing.assert_allclose(split, whole, atol=2e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps=0 must be an integer of at least 1"),
        ({"normalization": "l2"}, "normalization='l2' is unknown; allowed are"),
        ({"coefficients": (1.0, 2.0)}, "must be three finite numbers, or three for e"),
        ({"coefficients": (math.nan,) * 3}, "must be three finite numbers"),
        ({"coefficients": "dion"}, "must be three finite numbers"),
        ({"coefficients": ((1.0, 2.0, 3.0), (4.0,))}, "must be three finite numbers"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        scale_by_orthogonalization(**kwargs)
    with pytest.raises(TypeError, match="restore_norm='no' must be True or False"):
        scale_by_orthogonalization(restore_norm="no")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (optax.contrib.MuonDimensionNumbers(0, 2), "names an axis that shape"),
        (optax.contrib.MuonDimensionNumbers(0, -2), "none twice"),
        ({"z": None}, "differs in its structure from the parameters"),
    ],
)
def test_bad_dimension_numbers(numbers, message):
    numbers = numbers if isinstance(numbers, dict) else {"w": numbers}
    tx = scale_by_orthogonalization(weight_dimension_numbers=numbers)
    with pytest.raises(ValueError, match=message):
        tx.init({"w": jnp.ones([2, 2])})


def test_dimension_numbers_of_a_model_serve_its_parts_and_leave_none_out():
    by_outputs = optax.contrib.MuonDimensionNumbers(1, 0)
    params = {"w": jnp.ones([2, 3]), "b": jnp.ones(3), "f": None, "head": jnp.ones(2)}

    def numbers(tree):
        return jax.tree.map(lambda x: by_outputs if x.ndim == 2 else None, tree)

    mine = {"w": "matrix", "b": "matrix", "f": None, "head": "other"}
    found = []
    for given in (numbers, numbers(params)):
        inner = scale_by_kronecker(weight_dimension_numbers=given)
        parts = {"matrix": inner, "other": optax.identity()}
        for tx in (inner, optax.partition(parts, mine)):
            state = tx.init(params)
            updates, _ = tx.update(params, state, params)
            assert updates["f"] is None
            found.append(updates["w"])
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1.0, 1e20])
def test_a_norm_is_restored_where_its_square_over_or_underflows(scale):
    grad = scale * random(3, 2).astype(np.float32)
    z = applied(scale_by_orthogonalization(restore_norm=True), jnp.asarray(grad))
    # Two square roots of sums in float32; a CPU takes denormal numbers for zero.
    norm = 0 if scale < 1e-38 else np.linalg.norm(np.float64(grad))
    np.testing.assert_allclose(np.linalg.norm(np.float64(z)), norm, rtol=1e-6)


def test_an_entry_that_is_no_dimension_numbers_is_named():
    tx = scale_by_orthogonalization(weight_dimension_numbers={"w": 0})
    with pytest.raises(TypeError, match=r"weight_dimension_numbers\['w'\]=0 is a int"):
        tx.init({"w": jnp.ones([2, 2])})


def test_a_gradient_whose_square_overflows_leaves_the_state_of_vectors_as_it_was():
    tx = scale_by_orthogonalization()
    grads = {"w": jnp.eye(2), "b": jnp.array([1.0, 2.0])}
    _, before = tx.update(grads, tx.init(grads))
    _, after = tx.update(grads | {"b": jnp.array([1e20, 1.0])}, before)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_vectors_argument_that_is_no_transformation():
    with pytest.raises(TypeError, match="vectors=3 is a int"):
        scale_by_orthogonalization(vectors=3)


@pytest.mark.parametrize("make", [scale_by_orthogonalization, scale_by_kronecker])
def test_what_is_nested_for_vectors_gets_the_previous_direction_of_vectors(make):
    given = {"vectors": scale_by_diagonal_secant(0.1)}
    if make is scale_by_kronecker:
        given = {"diagonal": given["vectors"], "graft": False}
    tx, alone = make(**given), scale_by_diagonal_secant(0.1)
    params = {"b": jnp.ones(2), "w": jnp.ones([3, 2])}
    state, state_alone = tx.init(params), alone.init({"b": params["b"]})
    for g, d in (([1.0, -2.0], [0.0, 0.0]), ([3.0, 1.0], [2.0, 1.0])):
        grads = {"b": jnp.array(g), "w": jnp.ones([3, 2])}
        direction = {"b": jnp.array(d), "w": jnp.ones([3, 2])}
        z, state = tx.update(grads, state, params, previous_direction=direction)
        expected, state_alone = alone.update(
            {"b": grads["b"]}, state_alone, previous_direction={"b": direction["b"]}
        )
        np.testing.assert_allclose(z["b"], expected["b"], rtol=1e-6)
    assert np.abs(z["b"] - grads["b"]).max() > 0.1


def test_schatten_is_for_real_matrices():
    tx = scale_by_orthogonalization(normalization="schatten")
    with pytest.raises(TypeError, match="normalization='schatten' is for real"):
        tx.init(jnp.ones([2, 2], jnp.complex64))
