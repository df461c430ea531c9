"""Proves that every parameter dtype is kept, accumulated well, and means the same."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import (
    diagnostics,
    hessian_vector_product,
    nlcg,
    scale_by_curvature_step,
    scale_by_diagonal_secant,
    scale_by_kronecker,
    scale_by_limited_memory,
    scale_by_nlcg,
    scale_by_orthogonalization,
    scale_by_slope_ratio,
)
from nlcg_optax.contrib import scale_by_nlcg_with_restart_memory
from nlcg_optax.paper import scale_by_loss_ratio
from tests.contract.running import (
    OF_SCALARS,
    OPTAX_SEARCHES,
    each_row,
    each_row_with_one,
    extra_args,
    make_step,
    small_loss,
    small_params,
)
from tests.contract.table import BY_NAME, RATE, ROWS


def _check_types(row, dtype):
    """No compilation: `eval_shape` shows every dtype that would come out."""
    tx = row.make()
    params = small_params(dtype)
    step = make_step(row, tx, small_loss)
    state = tx.init(params)
    new_params, new_state = jax.eval_shape(step, params, state)
    chex.assert_trees_all_equal_dtypes(new_params, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    direction = optax.tree.get(state, "direction")
    if direction is not None and row.name not in WITHOUT_OWN_DTYPE:
        chex.assert_trees_all_equal_dtypes(direction, params)
    wide = jnp.dtype(dtype) in (jnp.dtype(jnp.float64), jnp.dtype(jnp.complex128))
    if "beta" in diagnostics(state):
        expected = jnp.float64 if wide else jnp.float32
        assert diagnostics(state)["beta"].dtype == expected

    def update(params, state):
        value, grad = jax.value_and_grad(small_loss)(params)
        return tx.update(
            grad, state, params, **extra_args(row, value, grad, small_loss)
        )

    updates, _ = jax.eval_shape(update, params, state)
    chex.assert_trees_all_equal_dtypes(updates, params)


# Their states are kept in another dtype than that of the parameters.
WITHOUT_OWN_DTYPE = ("narrow",)


@each_row(fast=None, without=OF_SCALARS)
@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_narrow_and_complex_dtypes_are_kept(row, dtype):
    _check_types(row, dtype)


@each_row(without=OF_SCALARS)
def test_float16_is_kept(row):
    _check_types(row, "float16")


# float32 parameters in a float64 world too: nothing of theirs may widen.
@each_row_with_one("dtype", ["float32", "float64", "complex128"], without=OF_SCALARS)
def test_dtypes_are_kept_under_x64(row, dtype, x64):
    _check_types(row, dtype)


@each_row_with_one("dtype", ["float32", "float64"], without=OF_SCALARS | OPTAX_SEARCHES)
def test_a_gradient_of_another_width_leaves_the_state_its_dtypes(
    row, dtype, x64, standard_promotion
):
    tx, params = row.make(), small_params(dtype)
    other = {"float32": "float64", "float64": "float32"}[dtype]
    state = tx.init(params)

    def update(params, state):
        value, grad = jax.value_and_grad(small_loss)(params)
        grad = jax.tree.map(lambda x: x.astype(other), grad)
        return tx.update(
            grad, state, params, **extra_args(row, value, grad, small_loss)
        )

    _, new_state = jax.eval_shape(update, params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: scale_by_nlcg(preconditioner=inner),
        lambda inner: scale_by_kronecker(diagonal=inner),
        lambda inner: scale_by_orthogonalization(vectors=inner),
        scale_by_slope_ratio,
    ],
)
def test_a_nested_state_may_hold_a_random_key_and_a_number(make, standard_promotion):
    def add(updates, state, params=None):
        return updates, {"total": state["total"] + 1}

    noise = optax.add_noise(0.1, 0.5, jax.random.key(0))
    adder = optax.GradientTransformation(lambda params: {"total": 0.5}, add)
    tx = make(optax.chain(noise, adder))
    params = small_params("float32")
    state, extra = tx.init(params), {"value": jnp.float32(1.0)}
    _, traced = jax.eval_shape(lambda s: tx.update(params, s, params, **extra), state)
    # Outside of `jit` nothing turns the number into an array.
    _, state = tx.update(params, state, params, **extra)
    chex.assert_trees_all_equal_shapes_and_dtypes(traced, state)
    assert optax.tree.get(state, "total") == 1.5


# Three steps in a dtype against the same in float64. The bound is the unit roundoff
# times the entries' size (3) times a few tens of operations. In the narrow dtypes the
# gradient itself is rounded at every step and secant pairs are differences of those,
# so preconditioners from differences are left out there.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.0125}
NARROW = ["pr+", "rms", "secant_hvp"]


def _loss(params):
    # Evaluated in the dtype of the parameters throughout.
    return jnp.sum(params["w"] ** 2) + 2 * jnp.sum(params["b"] ** 4) / 4


def _three_steps(row, dtype):
    tx, params = row.make(), small_params(dtype)
    step = make_step(row, tx, _loss)

    @jax.jit
    def run(params, state):
        carry = (params, state)
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=3)[0]

    return run(params, tx.init(params))


@pytest.mark.parametrize("name", NARROW)
def test_dtypes_agree_with_float64(name, x64):
    row = BY_NAME[name]
    exact = _three_steps(row, jnp.float64)[0]
    for dtype, tolerance in TOLERANCES.items():
        rounded = _three_steps(row, jnp.dtype(dtype))[0]
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), rounded)
        chex.assert_trees_all_close(wide, exact, atol=tolerance)


def test_half_precision_inner_products_neither_overflow_nor_stagnate():
    # The square of 300 overflows float16, and a sum of 4096 ones stagnates at 256 in
    # bfloat16.
    tx = nlcg(RATE)
    for dtype, size, number in ((jnp.float16, 4, 300.0), (jnp.bfloat16, 4096, 1.0)):
        params = jnp.full(size, number, dtype)
        updates, state = tx.update(params, tx.init(params), params)
        norm = number * np.sqrt(size)
        np.testing.assert_allclose(diagnostics(state)["grad_norm"], norm, rtol=1e-6)
        assert updates.dtype == dtype
        # RATE * number, rounded twice to 8 bits at worst.
        np.testing.assert_allclose(
            updates.astype(jnp.float32), -RATE * number, rtol=1e-2
        )


# --- complex parameters and their real twins -----------------------------------------

# Not the secant and the second-moment preconditioners: they give a complex number one
# real curvature, where the twin has two.
TWINS = {
    "fr": nlcg(RATE, "fr"),
    "pr+": nlcg(RATE),
    "hz": BY_NAME["hz"].make(),
    "per_leaf": BY_NAME["per_leaf"].make(),
    "restarted": BY_NAME["restarted"].make(restart_period=3),
    "search": nlcg(),
    "zoom": BY_NAME["zoom"].make(),
    "backtracking": nlcg(linesearch=optax.scale_by_backtracking_linesearch(20)),
}


def _complex_start(dtype):
    return {
        "a": jnp.asarray([1 + 2j, -0.5 - 1j, 0.3j], dtype),
        "c": jnp.asarray([[2 - 1j], [0.1 + 0.1j]], dtype),
    }


def _complex_loss(z):
    # Couples real and imaginary parts, and the two leaves.
    mixed = jnp.abs(z["a"] ** 2 - z["c"][0, 0]) ** 2
    return 0.1 * jnp.sum(mixed) + jnp.sum(jnp.abs(z["c"] - (1 - 2j)) ** 2)


def _join(twin):
    return jax.tree.map(lambda x: jax.lax.complex(x[..., 0], x[..., 1]), twin)


def _split(z):
    return jax.tree.map(lambda x: jnp.stack([jnp.real(x), jnp.imag(x)], -1), z)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("pr+", "complex64"),
        ("search", "complex64"),
        *(pytest.param(name, "complex128", marks=pytest.mark.slow) for name in TWINS),
    ],
)
def test_complex_problem_is_its_real_twin(name, precision, request, standard_promotion):
    if precision == "complex128":
        request.getfixturevalue("x64")
    tx = TWINS[name]
    row = BY_NAME[name if name in ("search", "zoom", "backtracking") else "pr+"]
    start = _complex_start(precision)
    step = jax.jit(make_step(row, tx, _complex_loss))
    twin_step = jax.jit(make_step(row, tx, lambda t: _complex_loss(_join(t))))
    one, twin = (start, tx.init(start)), (_split(start), tx.init(_split(start)))
    for _ in range(4):
        one, twin = step(*one), twin_step(*twin)
    # Roundings, carried through four steps.
    tolerance = 1e-4 if precision == "complex64" else 1e-11
    chex.assert_trees_all_close(one[0], _join(twin[0]), rtol=tolerance, atol=tolerance)
    mine, other = diagnostics(one[1]), diagnostics(twin[1])
    for key in ("beta", "cosine", "grad_norm", "direction_norm"):
        np.testing.assert_allclose(
            mine[key], other[key], rtol=10 * tolerance, atol=tolerance
        )
    assert _complex_loss(one[0]) < _complex_loss(start)


def test_complex_curvature_is_that_of_the_real_twin(x64):
    start = _complex_start(jnp.complex128)
    vector = jax.tree.map(lambda z: (0.3 - 1j) * z + 0.2, start)
    product = hessian_vector_product(_complex_loss, start, vector)
    twin = hessian_vector_product(
        lambda t: _complex_loss(_join(t)), _split(start), _split(vector)
    )
    chex.assert_trees_all_close(product, _join(twin), rtol=1e-12, atol=1e-12)


def test_the_gradient_beside_a_product_of_ones_own_is_that_of_jax():
    weights = jnp.array([1.0, 10.0])
    z = jnp.array([0.3 + 1j, 2.0 - 1j])

    def loss(z):
        return jnp.sum(weights * jnp.abs(z - (1.0 + 2j)) ** 2)

    grad = jax.grad(loss)(z)
    tx = scale_by_curvature_step()
    # Along d the parabola has the slope 2 w z* d and the curvature 2 w d* d.
    d = jnp.conj(grad)
    slope, curvature = jnp.sum(jnp.abs(d) ** 2), 2 * jnp.sum(weights * jnp.abs(d) ** 2)
    _, state = tx.update(
        d,
        tx.init(z),
        z,
        grad=grad,
        hvp_fn=lambda p, v: 2.0 * weights.astype(v.dtype) * v,
    )
    found = diagnostics(state)
    np.testing.assert_allclose(found["step_size"], slope / curvature, rtol=1e-5)
    assert found["num_curvature_skips"] == 0


@pytest.mark.parametrize("rule", ["fr", "pr+"])
def test_what_float16_cannot_hold_is_cut_at_its_largest_number(rule):
    tx = nlcg(RATE, rule, state_dtype="float16")
    params = jnp.ones(3)
    state = tx.init(params)
    for size in (1e5, 1.0, 1.0):
        updates, state = tx.update(jnp.full(3, size), state, params)
        assert jnp.all(jnp.isfinite(updates))
    assert jnp.max(jnp.abs(updates)) < 1
    # 65,504 is rounded to 65,536 in bfloat16.
    narrow = jnp.full(3, 1e5, jnp.bfloat16)
    _, state = tx.update(narrow, tx.init(params), params)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state))
    # Updates of float16, with a momentum above its largest number, 65,504.
    momentum = scale_by_nlcg(0.9)
    state, half = momentum.init(params.astype(jnp.float16)), jnp.float16
    sizes = []
    for size in (4e4, 4e4, 1.0, 1.0):
        updates, state = momentum.update(jnp.full(3, size, half), state)
        sizes.append(float(jnp.max(jnp.abs(updates))))
    largest = float(jnp.finfo(half).max)
    # One rounding of float16 each.
    expected = [4e4, largest, 0.9 * largest + 1, 0.9 * (0.9 * largest + 1) + 1]
    np.testing.assert_allclose(sizes, expected, rtol=2e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: scale_by_diagonal_secant(0.1),
        lambda: scale_by_limited_memory(2),
        scale_by_loss_ratio,
        lambda: scale_by_nlcg_with_restart_memory("pr+", memory=1),
    ],
)
def test_states_of_float16_hold_no_infinity(make):
    tx, params = make(), jnp.ones(2, jnp.float16)
    state = tx.init(params)
    # float16 holds neither the changes of these gradients nor the last ones.
    for size in (6e4, -6e4, 1e5, -1e5):
        updates, state = tx.update(
            jnp.array([size, 1.0]),
            state,
            params,
            value=jnp.float32(1.0),
            previous_direction=-params,
        )
        params -= jnp.array([np.sign(size), 1.0], jnp.float16)
        chex.assert_tree_all_finite((updates, state))


# --- state_dtype ---------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["fr", "pr+", "hz"])
def test_state_dtype_halves_the_state(rule):
    wide, narrow = nlcg(RATE, rule), nlcg(RATE, rule, state_dtype=jnp.bfloat16)
    params = jax.tree.map(lambda x: jnp.tile(x, 64), small_params())

    def tree_bytes(tx):
        state = jax.eval_shape(tx.init, params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)

    assert tree_bytes(wide) == 2 * tree_bytes(narrow) > 0


def test_state_dtype_keeps_the_updates_wide():
    wide, narrow = nlcg(RATE), nlcg(RATE, state_dtype=jnp.bfloat16)
    row = BY_NAME["pr+"]
    params = small_params()
    one, other = (params, wide.init(params)), (params, narrow.init(params))
    step, narrow_step = (
        jax.jit(make_step(row, tx, small_loss)) for tx in (wide, narrow)
    )
    one, other = step(*one), narrow_step(*other)
    # The first step uses no state but -1 * z, which is rounded as it is stored only.
    chex.assert_trees_all_equal(other[0], one[0])
    assert optax.tree.get(other[1], "direction")["w"].dtype == jnp.bfloat16
    for _ in range(3):
        one, other = step(*one), narrow_step(*other)
    chex.assert_trees_all_equal_dtypes(other[0], params)
    # d and g_prev in 8 bits: a relative 4e-3 of each step, of which the longest is
    # RATE * |d| < 1.
    chex.assert_trees_all_close(other[0], one[0], atol=1e-2)


@each_row(
    names=[row.name for row in ROWS if row.factory is nlcg],
    without=OPTAX_SEARCHES,
    fast=None,
)
def test_state_dtype_is_stable_in_every_form(row):
    tx = row.make(state_dtype=jnp.bfloat16)
    params = small_params()
    state = tx.init(params)
    out = jax.eval_shape(make_step(row, tx, small_loss), params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, (params, state))
    direction = optax.tree.get(state, "direction")
    assert {leaf.dtype for leaf in direction.values()} == {jnp.dtype(jnp.bfloat16)}
