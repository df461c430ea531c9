"""`scale_by_nlcg`: recursion, memory, restarts, guards, diagnostics, bad input."""

import functools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics, scale_by_diagonal_secant, scale_by_nlcg
from nlcg_optax.direction.rules import RULES
from nlcg_optax.paper.rules import PAPER_RULES

DIAGONAL = jnp.array([0.5, 2.0, 4.0])
DIAGONAL_P = optax.stateless(lambda g, _: g * DIAGONAL.astype(g.dtype))


def random_grads(count, seed=0, size=3):
    return np.random.default_rng(seed).normal(size=(count, size))


def run(tx, grads, params=None):
    params = jnp.zeros_like(grads[0]) if params is None else params
    state, out, update = tx.init(params), [], jax.jit(tx.update)
    for g in grads:
        updates, state = update(jnp.asarray(g), state, params)
        out.append((np.asarray(updates), state))
    return out


def test_recursion_matches_numpy_with_smoothing_and_preconditioner(x64):
    grads, p = random_grads(12), np.asarray(DIAGONAL, float)
    tx = scale_by_nlcg(
        "pr",
        preconditioner=DIAGONAL_P,
        beta_min=0.0,
        beta_max=0.9,
        beta_smoothing=0.7,
    )
    d, average = np.zeros(3), 0.0
    for t, (updates, state) in enumerate(run(tx, grads)):
        g, z = grads[t], p * grads[t]
        beta = 0.0
        if t > 0:
            rho_prev = grads[t - 1] @ (p * grads[t - 1])
            beta = np.clip((g - grads[t - 1]) @ z / rho_prev, 0, 0.9)
        average = 0.7 * average + 0.3 * beta
        used = average if t > 0 and g @ (-z + average * d) < 0 else 0.0
        d = -z + used * d
        np.testing.assert_allclose(updates, -d, rtol=1e-12)
        info = diagnostics(state)
        norms = np.linalg.norm(g), np.linalg.norm(d)
        np.testing.assert_allclose(info["beta"], used, rtol=1e-12)
        np.testing.assert_allclose(info["grad_norm"], norms[0], rtol=1e-12)
        np.testing.assert_allclose(info["direction_norm"], norms[1], rtol=1e-10)
        np.testing.assert_allclose(info["cosine"], -(g @ d) / np.prod(norms), rtol=1e-9)


@pytest.mark.parametrize("change", [0.5, 1e-3])
def test_products_with_the_change_of_the_gradient_keep_their_digits(change):
    """The error of β is that of the sums: 64 units (`_rounding_unit`) of gᵀg."""
    noise, grad = random_grads(2, size=100_000).astype(np.float32)
    grads = grad, ((1 - change) * grad + 0.1 * change * noise).astype(np.float32)
    # Minus a tenth of HS: with HS itself this d would vanish, and restart.
    tx = scale_by_nlcg(lambda products: -0.1 * products.y_z / products.d_y)
    _, (_, state) = run(tx, grads)
    g_prev, g = (x.astype(np.float64) for x in grads)
    y = g - g_prev
    expected = 0.1 * (y @ g) / (y @ g_prev)
    relative = 64 * np.finfo(np.float32).eps * (g @ g + g_prev @ g_prev)
    relative *= 1 / abs(y @ g) + 1 / abs(y @ g_prev)
    np.testing.assert_allclose(diagnostics(state)["beta"], expected, rtol=relative)


def test_inverse_metric_norm_follows_from_the_recurrence(x64):
    grads, p = random_grads(8), np.asarray(DIAGONAL, float)
    tx = scale_by_nlcg("hz", preconditioner=DIAGONAL_P)
    for updates, state in run(tx, grads):
        np.testing.assert_allclose(state.d_pinv_d, updates @ (updates / p), rtol=1e-9)


def test_per_leaf_scope_is_one_optimizer_per_leaf(x64):
    grads = random_grads(6, size=5)
    trees = [{"a": jnp.asarray(g[:2]), "b": jnp.asarray(g[2:])} for g in grads]
    tx = scale_by_nlcg("pr+", scope="per_leaf")
    state, update = tx.init(trees[0]), jax.jit(tx.update)
    alone = {"a": run(scale_by_nlcg("pr+"), grads[:, :2])}
    alone["b"] = run(scale_by_nlcg("pr+"), grads[:, 2:])
    for t, tree in enumerate(trees):
        updates, state = update(tree, state)
        for name in ("a", "b"):
            np.testing.assert_allclose(updates[name], alone[name][t][0], rtol=1e-12)
        betas = [alone[name][t][1].diagnostics.beta for name in ("a", "b")]
        np.testing.assert_allclose(state.diagnostics.beta, np.mean(betas), rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "kwargs", "copies"),
    [
        ("fr", {}, 1),
        ("cd", {}, 1),
        ("dy", {}, 1),
        (0.9, {}, 1),
        ("pr+", {}, 2),
        ("hs", {}, 2),
        ("hz", {}, 2),
        (PAPER_RULES["pr"], {}, 2),
        ("fr", {"restart": "powell"}, 2),
        ("fr", {"preconditioner": DIAGONAL_P}, 1),
        (jax.jit(RULES["fr"]), {"preconditioner": DIAGONAL_P}, 1),
        ("pr+", {"preconditioner": DIAGONAL_P}, 2),
        (PAPER_RULES["pr"], {"preconditioner": DIAGONAL_P}, 2),
        ("hz", {"preconditioner": DIAGONAL_P}, 3),
        ("fr", {"state_dtype": jnp.bfloat16}, 0.5),
        ("pr+", {"state_dtype": jnp.bfloat16}, 1),
    ],
)
def test_memory_in_copies_of_the_parameters(rule, kwargs, copies):
    params = jnp.zeros([1000])
    state = jax.eval_shape(scale_by_nlcg(rule, **kwargs).init, params)
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim]
    assert sum(sizes) == copies * params.nbytes


def test_state_dtype_rounds_only_what_is_kept():
    grads = random_grads(20).astype(np.float32)
    exact = run(scale_by_nlcg("fr"), grads)
    rounded = run(scale_by_nlcg("fr", state_dtype=jnp.bfloat16), grads)
    assert rounded[0][0].dtype == jnp.float32
    np.testing.assert_array_equal(rounded[0][0], grads[0])  # no rounding on the way out
    # A relative error of 2^-9 a step, damped or kept by beta <= 1, over 20 steps.
    for (a, _), (b, _) in zip(exact, rounded):
        np.testing.assert_allclose(a, b, atol=20 * 2.0**-9 * np.abs(a).max())


def test_restart_period_and_powell():
    grads = np.ones([6, 3]) + 0.1 * random_grads(6)
    restarted = [s.diagnostics.restarted for _, s in run(scale_by_nlcg("fr"), grads)]
    assert restarted == [True, False, False, False, False, False]
    periodic = run(scale_by_nlcg("fr", restart_period=2), grads)
    restarted = [s.diagnostics.restarted for _, s in periodic]
    assert restarted == [True, False, True, False, True, False]
    assert periodic[-1][1].diagnostics.num_restarts == 3
    # Nearly parallel gradients: Powell's test fires at every step.
    powell = run(scale_by_nlcg("fr", restart="powell"), grads)
    assert powell[-1][1].diagnostics.num_restarts == 6
    # Orthogonal gradients: it never does.
    orthogonal = run(scale_by_nlcg("fr", restart="powell"), np.eye(3))
    assert orthogonal[-1][1].diagnostics.num_restarts == 1


def test_direction_that_ascends_restarts_unless_asked_not_to():
    grads = np.array([[1.0, 0.0], [-3.0, 0.1]])  # d = (-1, 0): 1 * dᵀg = 3 > 0
    grads[1] *= 0.5
    (_, _), (updates, state) = run(scale_by_nlcg(1.0), grads)
    # gᵀz = 2.2525, β dᵀg = 1.5: still a descent direction
    np.testing.assert_allclose(updates, [-0.5, 0.05], rtol=1e-6)
    assert not state.diagnostics.restarted
    grads[1] *= 0.5  # gᵀz = .563, β dᵀg = .75
    (_, _), (updates, state) = run(scale_by_nlcg(1.0), grads)
    np.testing.assert_allclose(updates, grads[1], rtol=1e-6)
    assert state.diagnostics.restarted
    unguarded = scale_by_nlcg(1.0, restart=None)
    (_, _), (updates, state) = run(unguarded, grads)
    np.testing.assert_allclose(updates, [0.25, 0.025], rtol=1e-6)
    assert state.diagnostics.cosine < 0


def test_leaves_without_a_gradient_are_no_restarts():
    tx = scale_by_nlcg(0.5, scope="per_leaf")
    params = {"empty": jnp.zeros(0), "frozen": jnp.zeros(2), "w": jnp.zeros(2)}
    state = tx.init(params)
    for t in range(4):
        w = jnp.array([[1.0, 0.0], [0.0, 1.0]][t % 2])
        updates, state = tx.update({**params, "w": w}, state)
    np.testing.assert_array_equal(updates["w"], [0.625, 1.25])  # 1 + .5², .5 + .5³
    np.testing.assert_array_equal(updates["frozen"], 0)
    assert state.diagnostics.num_restarts == 1  # the first step


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_dai_yuan_restarts_where_the_gradient_has_not_changed(state_dtype):
    # y = 0; DY alone has it from a recurrence, whose rounding must not become 1 / β.
    for seed in range(20):
        first, second = random_grads(2, seed, 1000).astype(np.float32)
        tx = scale_by_nlcg("dy", state_dtype=state_dtype)
        *_, (updates, _) = run(tx, [first, second, second])
        np.testing.assert_array_equal(updates, second)


@pytest.mark.parametrize("rule", [3.0, "hz", "dk"])
def test_a_norm_in_p_that_would_overflow_restarts(rule):
    tx = scale_by_nlcg(rule, preconditioner=optax.scale(1e-20))
    grads = [np.full(2, s, np.float32) for s in (1e18, 1.01e18) * 20]
    found = run(tx, grads)
    # P⁻¹ = 1e20 makes dᵀP⁻¹d = 2e16 · 9ᵗ with β = 3: beyond 3e38 after 24 steps.
    restarts = [bool(state.diagnostics.restarted) for _, state in found]
    if rule == 3.0:
        assert restarts.index(True, 1) in (23, 24, 25)
    assert not all(restarts[-4:])
    assert all(np.isfinite(state.d_pinv_d) for _, state in found)


@pytest.mark.parametrize("restart", ["ascent", None])
def test_indefinite_preconditioner_falls_back_to_the_gradient(restart):
    negative = optax.stateless(lambda g, _: -g)
    tx = scale_by_nlcg("fr", preconditioner=negative, restart=restart)
    ((updates, state),) = run(tx, np.array([[3.0, 4.0]]))
    np.testing.assert_array_equal(updates, [3.0, 4.0])
    assert state.diagnostics.cosine == 1.0
    assert state.g_prev_z_prev == 25.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize(
    "preconditioner",
    [
        None,
        optax.scale_by_rms(),
        scale_by_diagonal_secant(0.1),
        optax.chain(optax.scale_by_rms(), scale_by_diagonal_secant(0.1)),
    ],
)
def test_bad_gradient_leaves_the_state_and_gives_a_zero_update(bad, preconditioner):
    grads = random_grads(3).astype(np.float32)
    tx = scale_by_nlcg("hz", preconditioner=preconditioner)
    _, state = run(tx, grads)[-1]
    g = jnp.array([1.0, bad, 2.0], jnp.float32)
    updates, after = jax.jit(tx.update)(g, state)
    np.testing.assert_array_equal(updates, 0)
    assert after.diagnostics.skipped
    assert after.diagnostics.num_skips == 1
    chex.assert_trees_all_equal(
        after._replace(diagnostics=None), state._replace(diagnostics=None)
    )
    # ... and the next good step is as if nothing had happened.
    expected, _ = tx.update(jnp.asarray(grads[0]), state)
    actual, recovered = tx.update(jnp.asarray(grads[0]), after)
    np.testing.assert_array_equal(actual, expected)
    assert not recovered.diagnostics.skipped


def test_non_finite_preconditioned_gradient_is_skipped_too():
    inverse = optax.stateless(lambda g, _: 1 / g)
    tx = scale_by_nlcg("fr", preconditioner=inverse)
    ((updates, state),) = run(tx, np.array([[0.0, 1.0]]))
    np.testing.assert_array_equal(updates, 0)
    assert state.diagnostics.num_skips == 1
    assert state.count == 0


def test_zero_gradient_is_a_fixed_point():
    for updates, state in run(scale_by_nlcg("pr+"), np.zeros([3, 2])):
        np.testing.assert_array_equal(updates, 0)
        chex.assert_tree_all_finite(state)


def test_preconditioner_gets_extras_and_previous_direction():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(extra)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = scale_by_nlcg("fr", preconditioner=spy)
    params = jnp.array([1.0, 2.0])
    updates, state = tx.update(params, tx.init(params), params, value=3.0)
    tx.update(params, state, params, value=4.0)
    assert [extra["value"] for extra in seen] == [3.0, 4.0]
    np.testing.assert_array_equal(seen[0]["previous_direction"], 0)
    np.testing.assert_array_equal(seen[1]["previous_direction"], -updates)


# -- properties ---------------------------------------------------------------------

DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}
PROPERTY_CASES = [
    ("pr+", {}),
    ("hz", {}),
    (5.0, {"scope": "per_leaf", "beta_smoothing": 0.5}),
    ("fr", {"preconditioner": optax.scale_by_rms(), "restart": "powell"}),
    ("pr+", {"preconditioner": scale_by_diagonal_secant(0.1)}),
]


@functools.cache
def compiled_update(case, dtype):
    rule, kwargs = PROPERTY_CASES[case]
    tx = scale_by_nlcg(rule, **kwargs)
    params = {"a": jnp.zeros([3], dtype), "b": [jnp.zeros([2, 1], dtype)]}
    return tx.init(params), jax.jit(tx.update)


ANY_FLOAT = st.one_of(
    st.sampled_from([0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-38, 1e-45]),
    st.floats(-(2.0**70), 2.0**70, width=32, allow_subnormal=False),
    st.floats(-2, 2, width=32, allow_subnormal=False),
)


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(
    case=st.integers(0, len(PROPERTY_CASES) - 1),
    dtype=st.sampled_from(sorted(DTYPES)),
    grads=st.lists(
        hnp.arrays(np.float32, 5, elements=ANY_FLOAT), min_size=2, max_size=5
    ),
)
def test_never_a_non_finite_state_never_an_ascent_direction(case, dtype, grads):
    state, update = compiled_update(case, DTYPES[dtype])
    for flat in grads:
        with np.errstate(over="ignore"):
            flat = flat.astype(DTYPES[dtype])
        g = {"a": jnp.asarray(flat[:3]), "b": [jnp.asarray(flat[3:]).reshape(2, 1)]}
        updates, state = update(g, state)
        chex.assert_tree_all_finite((updates, state))
        u = np.concatenate([np.ravel(x) for x in jax.tree.leaves(updates)])
        if np.isfinite(flat.astype(np.float64)).all():
            # In float64: d = -u must not ascend.
            assert -(u.astype(np.float64) @ flat.astype(np.float64)) <= 0
        else:
            np.testing.assert_array_equal(u, 0)


# -- bad input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"rule": "nope"}, ValueError, "rule='nope' is unknown; allowed are"),
        ({"preconditioner": "rms"}, TypeError, "preconditioner='rms' is a str"),
        ({"beta_min": 1.0, "beta_max": 0.5}, ValueError, "beta_min=1.0 and beta_max="),
        ({"beta_min": float("nan")}, ValueError, "neither may be NaN"),
        ({"beta_smoothing": 1.0}, ValueError, r"beta_smoothing=1.0 is not in \[0, 1\)"),
        ({"restart": "sometimes"}, ValueError, "restart='sometimes' is unknown"),
        ({"restart_period": 0}, ValueError, "restart_period=0 must be an integer"),
        ({"restart_period": -3}, ValueError, "restart_period=-3 must be an integer"),
        ({"scope": "leaf"}, ValueError, "scope='leaf' is unknown; allowed are"),
        ({"state_dtype": jnp.int8}, ValueError, "state_dtype=.* must be a real float"),
        ({"state_dtype": "float33"}, ValueError, "state_dtype='float33' must be"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        scale_by_nlcg(**kwargs)


def test_mismatched_trees_are_named():
    tx = scale_by_nlcg("fr")
    state = tx.init({"a": jnp.zeros(2)})
    with pytest.raises(ValueError, match="updates has the tree structure"):
        tx.update({"b": jnp.zeros(2)}, state)
    with pytest.raises(ValueError, match=r"updates\['a'\] has shape \(3,\)"):
        tx.update({"a": jnp.zeros(3)}, state)
    with pytest.raises(TypeError, match=r"leaf \['a'\] has dtype int32"):
        tx.init({"a": jnp.arange(2)})


def test_a_rule_may_be_a_function_that_returns_a_python_number():
    tx = scale_by_nlcg(lambda products: 0.5)
    grad = jnp.ones(2)
    _, state = tx.update(grad, tx.init(grad))
    updates, _ = tx.update(grad, state)
    np.testing.assert_allclose(updates, 1.5)


def test_no_leaves_have_a_beta_of_zero():
    tx = scale_by_nlcg(scope="per_leaf")
    _, state = tx.update({}, tx.init({}))
    assert state.diagnostics.beta == 0
