"""`scale_by_kronecker` against a replica in NumPy float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics, nlcg, scale_by_kronecker, split_parameters
from nlcg_optax.dtypes import with_standard_promotion
from nlcg_optax.preconditioners.kronecker_factors import inverse_root

NO_DAMPING = {"graft": False, "relative_damping": 0.0}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def root(matrix, order, relative_damping):
    values, vectors = np.linalg.eigh(matrix)
    largest = values[-1]
    values = (
        np.maximum(values, len(values) * 2.0**-52 * largest)
        + relative_damping * largest
    )
    return (vectors * values ** (-1 / order)) @ vectors.conj().T


class Replica:
    """One matrix, or one block of one, step by step."""

    def __init__(self, *, decay, period, relative_damping, sides=("rows", "columns")):
        self.decay, self.period, self.relative_damping = decay, period, relative_damping
        self.sides, self.count = sides, 0
        self.factors = dict.fromkeys(sides, 0.0)
        self.roots = {}

    def __call__(self, g):
        for side in self.sides:
            gram = g @ g.conj().T if side == "rows" else g.conj().T @ g
            old = self.factors[side]
            self.factors[side] = self.decay * old + (1 - self.decay) * gram
        if self.count % self.period == 0:
            correction = 1 - self.decay ** (self.count + 1)
            self.roots = {
                side: root(
                    factor / correction, 2 * len(self.sides), self.relative_damping
                )
                for side, factor in self.factors.items()
            }
        self.count += 1
        z = self.roots["rows"] @ g if "rows" in self.sides else g
        return z @ self.roots["columns"] if "columns" in self.sides else z


def run(tx, grads):
    state, update, out = tx.init(grads[0]), jax.jit(tx.update), []
    for grad in grads:
        z, state = update(grad, state)
        out.append(z)
    return out, state


@pytest.mark.parametrize("complex_numbers", [False, True])
def test_factors_and_roots_match_numpy(complex_numbers, x64):
    grads = [random(5, 3, seed=s) for s in range(7)]
    if complex_numbers:
        grads = [g + 1j * random(5, 3, seed=s + 50) for s, g in enumerate(grads)]
    settings = {"decay": 0.8, "relative_damping": 1e-3}
    tx = scale_by_kronecker(**settings, refresh_period=3, graft=False)
    replica = Replica(**settings, period=3)
    out, state = run(tx, [jnp.asarray(g) for g in grads])
    for z, grad in zip(out, grads):
        # Powers -1/4 of eigenvalues down to 1e-3 of the largest.
        np.testing.assert_allclose(z, replica(grad), rtol=1e-9, atol=1e-11)
    assert diagnostics(state)["num_refreshes"] == 3
    assert diagnostics(state)["num_root_failures"] == 0


def test_one_factor_for_extreme_shapes_and_matrices_from_convolutions(x64):
    tall = [random(40, 2, seed=s) for s in range(3)]
    conv = [random(3, 3, 2, 12, seed=s + 9) for s in range(3)]
    tx = scale_by_kronecker(
        decay=0.5, refresh_period=1, graft=False, relative_damping=1e-2
    )
    out, state = run(
        tx,
        [
            {"tall": jnp.asarray(t), "wide": jnp.asarray(t.T), "conv": jnp.asarray(c)}
            for t, c in zip(tall, conv)
        ],
    )
    settings = {"decay": 0.5, "period": 1, "relative_damping": 1e-2}
    of_tall = Replica(**settings, sides=("columns",))
    of_wide = Replica(**settings, sides=("rows",))
    of_conv = Replica(**settings)
    for z, t, c in zip(out, tall, conv):
        np.testing.assert_allclose(z["tall"], of_tall(t), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(z["wide"], of_wide(t.T), rtol=1e-9, atol=1e-11)
        expected = of_conv(c.reshape(18, 12)).reshape(c.shape)
        np.testing.assert_allclose(z["conv"], expected, rtol=1e-9, atol=1e-11)
    rows, columns = jax.tree.map(lambda factor: factor.shape[-1], state.factors)
    none = optax.MaskedNode()
    assert rows == {"conv": 18, "tall": none, "wide": 2}
    assert columns == {"conv": 12, "tall": 2, "wide": none}


def test_dimension_numbers_say_what_is_a_matrix(x64):
    grads = [
        {"stack": random(2, 4, 3, seed=s), "vector": random(2, 2, seed=s)}
        for s in range(3)
    ]
    settings = {"decay": 0.8, "relative_damping": 1e-3}
    shared = {"refresh_period": 1, "graft": False, "diagonal": optax.scale(2.0)}
    stack = optax.contrib.MuonDimensionNumbers(-2, -1)
    numbers = {"stack": stack, "vector": None}
    tx = scale_by_kronecker(**settings, **shared, weight_dimension_numbers=numbers)
    replicas = [Replica(**settings, period=1) for _ in range(2)]
    arrays = [jax.tree.map(jnp.asarray, grad) for grad in grads]
    out, _ = run(tx, arrays)
    by_default, _ = run(scale_by_kronecker(**settings, **shared), arrays)
    for z, other, grad in zip(out, by_default, grads):
        expected = [replica(g) for replica, g in zip(replicas, grad["stack"])]
        np.testing.assert_allclose(z["stack"], expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_array_equal(z["vector"], 2 * grad["vector"])
        for name in grad:
            assert np.abs(z[name] - other[name]).max() > 0.1


def test_one_sided_ratio_decides_which_sides_have_factors(x64):
    # At the first gradient one factor and two give the same.
    grads = [random(6, 3, seed=s) for s in range(3)]
    settings = {"decay": 0.5, "relative_damping": 1e-2}
    tx = scale_by_kronecker(
        **settings, refresh_period=1, graft=False, one_sided_ratio=1.5
    )
    out, _ = run(tx, [jnp.asarray(g) for g in grads])
    replica = Replica(**settings, period=1, sides=("columns",))
    for z, grad in zip(out, grads):
        np.testing.assert_allclose(z, replica(grad), rtol=1e-9, atol=1e-11)
    # Sides at the very ratio, 16 by default, both have a factor.
    for rows, sizes in ((32, [32, 2]), (33, [2])):
        state = scale_by_kronecker().init(jnp.zeros([rows, 2]))
        assert [x.shape[-1] for x in jax.tree.leaves(state.factors)] == sizes


def test_large_sides_are_cut_into_padded_blocks_of_their_own(x64):
    grads = [
        random(7, 5, seed=s) for s in range(3)
    ]  # blocks of 3+3+1 rows, 3+2 columns
    settings = {"decay": 0.9, "relative_damping": 1e-2}
    tx = scale_by_kronecker(**settings, refresh_period=1, block_size=3, graft=False)
    out, _ = run(tx, [jnp.asarray(g) for g in grads])
    blocks = [
        (slice(r, min(r + 3, 7)), slice(c, min(c + 3, 5)))
        for r in (0, 3, 6)
        for c in (0, 3)
    ]
    replicas = [Replica(**settings, period=1) for _ in blocks]
    for z, grad in zip(out, grads):
        for replica, block in zip(replicas, blocks):
            np.testing.assert_allclose(
                z[block], replica(grad[block]), rtol=1e-8, atol=1e-10
            )


def test_grafting_keeps_the_direction_and_takes_the_length():
    grads = [
        {"w": jnp.asarray(random(4, 3, seed=s)), "b": jnp.ones(2)} for s in range(3)
    ]
    diagonal = with_standard_promotion(optax.scale_by_rms(0.9, bias_correction=True))
    plain, _ = run(scale_by_kronecker(graft=False, diagonal=diagonal), grads)
    grafted, _ = run(scale_by_kronecker(diagonal=diagonal), grads)
    lengths, _ = run(diagonal, grads)
    for a, b, c in zip(plain, grafted, lengths):
        wanted = np.linalg.norm(c["w"])
        np.testing.assert_allclose(np.linalg.norm(b["w"]), wanted, rtol=1e-5)
        expected = a["w"] * wanted / np.linalg.norm(a["w"])
        np.testing.assert_allclose(b["w"], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(b["b"], c["b"], rtol=1e-6)
        np.testing.assert_allclose(a["b"], c["b"], rtol=1e-6)


def test_the_first_step_is_the_polar_factor_at_any_scale(x64):
    grad = random(5, 4)
    u, _, vh = np.linalg.svd(grad, full_matrices=False)
    for scale in (1e-60, 1.0, 1e60):
        (z,), _ = run(scale_by_kronecker(**NO_DAMPING), [jnp.asarray(scale * grad)])
        # The left factor has rank 4 of 5; its null space meets nothing of G but
        # rounding, times the 4th root of the reciprocal rounding.
        np.testing.assert_allclose(z, u @ vh, rtol=1e-7, atol=1e-7)


def test_inverse_root_of_a_singular_and_of_a_zero_matrix():
    values = np.asarray(inverse_root(jnp.diag(jnp.array([4.0, 0.0])), 2, 0.25))
    # (4 + 1)^-1/2 and (0 + 1)^-1/2, with 2.4e-7 * 4 for the eigenvalue zero.
    np.testing.assert_allclose(values, np.diag([5**-0.5, 1.0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(inverse_root(jnp.zeros([2, 2]), 4, 0.1), np.eye(2))


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)]
)
def test_narrow_gradients_have_wide_factors(dtype):
    grads = [jnp.asarray(random(4, 3, seed=s)).astype(dtype) for s in range(3)]
    small = [g * jnp.asarray(2.0**-10, dtype) for g in grads]
    tx = scale_by_kronecker(refresh_period=1)
    out, state = run(tx, small)
    exact, _ = run(tx, [g.astype(jnp.float32) for g in small])
    for z, wanted in zip(out, exact):
        assert z.dtype == dtype
        np.testing.assert_allclose(
            z.astype(jnp.float32), wanted, rtol=float(jnp.finfo(dtype).eps), atol=1e-6
        )
    assert {f.dtype for f in jax.tree.leaves(state.factors)} == {jnp.dtype(jnp.float32)}


def test_gradient_that_is_not_finite_leaves_the_state():
    grads = {"w": jnp.asarray(random(3, 2)), "b": jnp.ones(2)}
    tx = scale_by_kronecker(refresh_period=1)
    _, state = run(tx, [grads])
    for bad in (jnp.nan, jnp.inf):
        broken = {**grads, "w": grads["w"].at[0, 0].set(bad)}
        chex.assert_trees_all_equal(jax.jit(tx.update)(broken, state)[1], state)


def test_roots_that_are_not_finite_are_refused_and_counted():
    grad = jnp.asarray(random(3, 3), jnp.float32)
    tx = scale_by_kronecker(refresh_period=1)
    _, state = run(tx, [grad])
    broken = state._replace(factors=jax.tree.map(lambda x: x * jnp.inf, state.factors))
    again, after = jax.jit(tx.update)(grad, broken)
    assert after.diagnostics.num_root_failures == 2
    chex.assert_trees_all_equal(after.roots, state.roots)
    assert jnp.isfinite(again).all()


def test_refused_roots_of_all_parts_split_by_hand_are_counted():
    grads = jnp.asarray(random(2, 3, 3), jnp.float32)
    tx = split_parameters(scale_by_kronecker(refresh_period=2), "x")

    def after(grad, scale):
        state = tx.init(grad)
        factors = jax.tree.map(lambda x: x + scale, state.factors)
        return tx.update(grad, state._replace(factors=factors))[1].diagnostics

    found = jax.vmap(after, axis_name="x")(grads, jnp.array([0.0, jnp.inf]))
    np.testing.assert_array_equal(found.num_root_failures, [2, 2])


# The square of 1e25 and three times that of 1.2e19 are beyond float32.
@pytest.mark.parametrize("size", [1e25, 1.2e19])
def test_a_gradient_whose_factor_overflows_leaves_the_factors_as_they_were(size):
    grad = jnp.asarray(random(3, 3), jnp.float32)
    tx = scale_by_kronecker(refresh_period=1)
    _, state = run(tx, [grad])
    between, after = jax.jit(tx.update)(jnp.full([3, 3], size), state)
    assert jnp.isfinite(between).all()
    for name in ("count", "factors", "roots"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(state, name))
    chex.assert_trees_all_equal(tx.update(grad, after)[0], tx.update(grad, state)[0])


def test_all_zero_gradients_give_zero():
    grads = {"w": jnp.zeros([3, 2]), "b": jnp.zeros(2)}
    out, _ = run(scale_by_kronecker(), [grads] * 2)
    for z in out:
        chex.assert_trees_all_equal(z, grads)


@pytest.mark.parametrize("graft", [True, False])
def test_before_the_first_refresh_the_roots_are_the_identity(graft):
    tx = scale_by_kronecker(graft=graft, block_size=2, diagonal=optax.identity())
    grad = jnp.array([[1.0, 2.0, 3.0], [3.0, 5.0, -1.0], [2.0, 0.0, 1.0]])
    z, state = tx.update(grad, tx.init(grad), refresh=False)
    # A product with the identity is exact; the norm is that of the same matrix.
    np.testing.assert_allclose(z, grad, rtol=4 * 2**-23)
    assert diagnostics(state)["num_refreshes"] == 0


def test_the_roots_are_computed_at_refreshes_only():
    tx = scale_by_kronecker(refresh_period=4)
    grad = jnp.ones([3, 2])
    text = jax.jit(tx.update).lower(grad, tx.init(grad)).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert entry.count(" conditional(") == 1  # both decompositions are inside it
    assert "syevd" in text
    assert "syevd" not in entry


@pytest.mark.slow
def test_nested_it_reaches_the_minimum_of_a_matrix_problem():
    scale = jnp.asarray(np.geomspace(1, 100, 12).reshape(4, 3), jnp.float32)

    def loss(w):
        return 0.5 * jnp.sum(scale * (w - 1) ** 2)

    tx = nlcg(
        optax.linear_schedule(0.3, 0.0, 100),
        preconditioner=scale_by_kronecker(),
        beta_smoothing=0.9,
    )

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.zeros([4, 3])
    w, state = jax.jit(lambda c: jax.lax.scan(step, c, length=100)[0])((w, tx.init(w)))
    assert loss(w) < 1e-3 * loss(jnp.zeros([4, 3]))
    assert diagnostics(state)["num_refreshes"] == 10


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"decay": 1.0}, r"decay=1.0 is not in \[0, 1\)"),
        ({"refresh_period": 0}, "refresh_period=0 must be an integer of at least 1"),
        (
            {"relative_damping": -1.0},
            "relative_damping=-1.0 must be finite and not below 0",
        ),
        ({"block_size": 0}, "block_size=0 must be an integer of at least 1"),
        ({"one_sided_ratio": 0.5}, "one_sided_ratio=0.5"),
        ({"refresh_period": 2**31}, "at least 1 and at most 2147483647"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        scale_by_kronecker(**kwargs)
    with pytest.raises(TypeError, match="graft='no' must be True or False"):
        scale_by_kronecker(graft="no")


def test_other_shapes_than_those_of_init():
    tx = scale_by_kronecker()
    state = tx.init({"w": jnp.ones([3, 2])})
    with pytest.raises(ValueError, match="has shape .2, 3., but the state was"):
        tx.update({"w": jnp.ones([2, 3])}, state)
    with pytest.raises(ValueError, match="updates has the tree structure"):
        tx.update({"w": jnp.ones([3, 2]), "v": jnp.ones([3, 2])}, state)
