"""Conjugacy rules: hand-computed numbers, agreement on quadratics, invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import InnerProducts, scale_by_nlcg
from nlcg_optax.direction.rules import RULES, constant, get_rule, products_used

# g = (2, 1), g_prev = (1, 3), z = P g with P = diag(1, 2), d_prev = (-2, -1):
# z = (2, 2), z_prev = (1, 6), y = (1, -2), P y = (1, -4).
BY_HAND = InnerProducts(
    g_z=6.0,
    y_z=-2.0,
    d_g=-5.0,
    d_y=0.0,  # -2*1 + -1*-2: a zero denominator
    d_g_prev=-5.0,
    g_prev_z_prev=19.0,
    g_z_prev=8.0,
    y_p_y=9.0,
    d_pinv_d=4.5,
)
# The same with d_prev = (-2, -3): d_g = -7, d_g_prev = -11, d_y = 4, dᵀP⁻¹d = 8.5.
OTHER_DIRECTION = BY_HAND._replace(d_g=-7.0, d_y=4.0, d_g_prev=-11.0, d_pinv_d=8.5)

EXPECTED = {
    # name: (with d_prev = (-2, -1), with d_prev = (-2, -3))
    "fr": (6 / 19, 6 / 19),
    "pr": (-2 / 19, -2 / 19),
    "pr+": (0.0, 0.0),
    "hs": (0.0, -2 / 4),
    "hs+": (0.0, 0.0),
    "dy": (0.0, 6 / 4),
    "ls": (-2 / 5, -2 / 11),
    "cd": (6 / 5, 6 / 11),
    # -2/4 - 2*9*(-7)/16 = 7.375; the bound .4*(-11)/8.5 does not bind
    "hz": (0.0, 7.375),
    # -2/4 + 9*7/16 = 3.4375
    "dk": (0.0, 3.4375),
    "hs-dy": (0.0, 0.0),
    "fr-pr": (-2 / 19, -2 / 19),
}


def as_arrays(products, dtype=jnp.float32):
    return InnerProducts(*(jnp.asarray(v, dtype) for v in products))


@pytest.mark.parametrize("name", RULES)
def test_hand_computed_numbers(name):
    for products, expected in zip((BY_HAND, OTHER_DIRECTION), EXPECTED[name]):
        beta = RULES[name](as_arrays(products))
        np.testing.assert_allclose(beta, expected, rtol=4 * 2**-23)


def test_truncations_bind():
    # HZ: 1/1 - 2*3*2/1 = -11 against .4*(-2)/5 = -.16
    hz = BY_HAND._replace(y_z=1.0, d_y=1.0, y_p_y=3.0, d_g=2.0, d_g_prev=-2.0)
    hz = as_arrays(hz._replace(d_pinv_d=5.0))
    np.testing.assert_allclose(RULES["hz"](hz), -0.16, rtol=1e-6)
    # DK: 1 - 3*2 = -5 against .5*2/5 = .2
    np.testing.assert_allclose(RULES["dk"](hz), 0.2, rtol=1e-6)
    # FR-PR clips PR = 9 to FR = 4 and PR = -9 to -4
    for y_z, expected in ((9.0, 4.0), (-9.0, -4.0)):
        p = as_arrays(BY_HAND._replace(g_z=4.0, y_z=y_z, g_prev_z_prev=1.0))
        assert RULES["fr-pr"](p) == expected
    # HS-DY: HS = 9/4 is cut to DY = 6/4, and HS = 2/4 is not.
    for y_z, expected in ((9.0, 1.5), (2.0, 0.5)):
        p = as_arrays(BY_HAND._replace(y_z=y_z, d_y=4.0))
        assert RULES["hs-dy"](p) == expected


@pytest.mark.parametrize("name", RULES)
def test_zero_denominators_restart(name):
    products = as_arrays(InnerProducts(*[0.0] * 9)._replace(g_z=1.0, y_z=1.0))
    beta = RULES[name](products)
    assert beta == 0


def make_quadratic(n=12, condition=1e3):
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    a = q @ np.diag(np.geomspace(1, condition, n)) @ q.T
    return (a + a.T) / 2, rng.normal(size=n)


@functools.cache
def compile_step(name, preconditioned):
    inverse = jnp.asarray(1 / np.diag(make_quadratic()[0]))
    preconditioner = optax.stateless(lambda g, _: g * inverse)
    tx = scale_by_nlcg(
        name,
        preconditioner=preconditioner if preconditioned else None,
        beta_min=-jnp.inf,
        beta_max=jnp.inf,
    )

    @jax.jit
    def step(x, state, a, b):
        g = a @ x - b
        updates, state = tx.update(g, state, x)
        d = -updates
        return x - (g @ d) / (d @ a @ d) * d, state, d, g

    return tx, step


@functools.cache
def run_quadratic(name, preconditioned, scale=1.0, steps=18):
    """Exact line searches on a quadratic, in float64: betas, directions, norms."""
    a, b = (jnp.asarray(scale * array) for array in make_quadratic())
    tx, step = compile_step(name, preconditioned)
    x = jnp.zeros(12)
    state, betas, directions, norms = tx.init(x), [], [], []
    for _ in range(steps):
        x, state, d, g = step(x, state, a, b)
        betas.append(float(state.diagnostics.beta))
        directions.append(np.asarray(d))
        norms.append(float(jnp.linalg.norm(g)))
    return np.array(betas), np.array(directions), np.array(norms)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_all_rules_agree_on_a_quadratic_with_exact_search(x64, name, preconditioned):
    betas, directions, _ = run_quadratic(name, preconditioned)
    reference, _, _ = run_quadratic("hs", preconditioned)
    # Round-off of conjugacy grows with the condition number: 1e3 * 1e3 * 2e-16.
    np.testing.assert_allclose(betas[:8], reference[:8], rtol=1e-8)
    a, _ = make_quadratic()
    gram = directions[:8] @ a @ directions[:8].T
    gram /= np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    np.testing.assert_allclose(gram, np.eye(8), atol=1e-8)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize(("name", "theta", "eta"), [("hz", 2, 0.4), ("dk", 1, 0.5)])
def test_the_rules_that_read_y_p_y_match_numpy(x64, name, theta, eta, preconditioned):
    # After an exact search dᵀg = 0, which hides yᵀP y.
    grads = np.random.default_rng(0).normal(size=(12, 3))
    p = np.array([0.5, 2.0, 4.0] if preconditioned else [1.0, 1.0, 1.0])
    preconditioner = optax.stateless(lambda g, _: g * jnp.asarray(p))
    tx = scale_by_nlcg(name, preconditioner=preconditioner if preconditioned else None)
    state, update = tx.init(jnp.zeros(3)), jax.jit(tx.update)
    d, g_prev, num_seen = np.zeros(3), np.zeros(3), 0
    for t, g in enumerate(grads):
        z, y, beta = p * g, g - g_prev, 0.0
        if t > 0:
            free = y @ z / (d @ y) - theta * (y @ (p * y)) * (d @ g) / (d @ y) ** 2
            slope = d @ (g_prev if name == "hz" else g)
            beta = max(free, eta * slope / (d @ (d / p)))
            beta = beta if g @ (beta * d - z) < 0 else 0.0
            num_seen += beta == free
        d, g_prev = beta * d - z, g
        updates, state = update(jnp.asarray(g), state)
        np.testing.assert_allclose(updates, -d, rtol=1e-9)
        np.testing.assert_allclose(state.diagnostics.beta, beta, rtol=1e-9)
    assert num_seen >= 4  # neither the bound nor a restart


@pytest.mark.parametrize("name", RULES)
def test_terminates_in_about_n_steps(x64, name):
    # In exact arithmetic the 13th gradient is zero; 16 leaves room for round-off at
    # condition number 1000.
    _, _, norms = run_quadratic(name, preconditioned=False)
    assert norms[16] < 1e-8 * norms[0]


@pytest.mark.parametrize("name", RULES)
def test_betas_do_not_depend_on_the_scale_of_the_objective(x64, name):
    betas, _, _ = run_quadratic(name, preconditioned=True)
    for scale in (2.0**-30, 2.0**30):  # powers of two commute with rounding
        scaled, _, _ = run_quadratic(name, preconditioned=True, scale=scale)
        np.testing.assert_allclose(scaled[:8], betas[:8], rtol=1e-9)


def test_names_numbers_and_callables():
    p = as_arrays(BY_HAND)
    assert get_rule(0.25)(p) == 0.25
    assert get_rule(jnp.float32(0.5))(p) == 0.5
    assert constant(0.125)(p) == 0.125
    custom = lambda p: p.g_z
    assert get_rule(custom) is custom
    with pytest.raises(ValueError, match="rule='polak' is unknown; allowed are"):
        get_rule("polak")
    with pytest.raises(TypeError, match="rule=None is a NoneType"):
        get_rule(None)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (float("nan"), ValueError, "rule=nan must be finite"),
        (np.float32("inf"), ValueError, "must be finite"),
        (True, TypeError, "rule=True is a bool"),
        (1 + 2j, TypeError, "rule=.* is a complex"),
    ],
)
def test_numbers_that_are_no_beta(rule, error, message):
    with pytest.raises(error, match=message):
        get_rule(rule)


def test_products_used_finds_what_a_rule_reads():
    assert products_used(RULES["fr"]) == {"g_z", "g_prev_z_prev"}
    assert products_used(RULES["pr"]) == {"y_z", "g_prev_z_prev"}
    assert products_used(RULES["dy"]) == {"g_z", "d_y"}
    assert products_used(RULES["cd"]) == {"g_z", "d_g_prev"}
    assert {"y_p_y", "d_pinv_d"} < products_used(RULES["hz"])
    assert products_used(constant(0.5)) == set()
    assert products_used(lambda p: p[0] * 2) == {"g_z"}  # by position as well


def test_products_used_looks_into_functions_that_take_all_products():
    fr, reads = RULES["fr"], {"g_z", "g_prev_z_prev"}
    assert products_used(jax.jit(fr)) == reads
    assert products_used(jax.checkpoint(jax.jit(fr))) == reads
    assert products_used(jax.jit(lambda p: p.y_z)) == {"y_z"}
    # What is computed and not returned is not read.
    assert products_used(lambda p: (2 * p.y_z, p.g_z)[1]) == {"g_z"}
    # The branches of a condition may read all that is passed on to them.
    either = lambda p: jax.lax.cond(p.d_g > 0, fr, lambda p: p.d_y, p)
    assert products_used(either) == set(InnerProducts._fields)


@pytest.mark.parametrize(
    "rule",
    [
        lambda p: 1.0 if p.g_z > 0 else 0.0,  # Python control flow on a value
        lambda p: jnp.stack([p.g_z, p.g_z]),  # no scalar
        lambda p: p.g_z > 0,  # not floating point
        lambda p, q: p.g_z,  # wrong arity
    ],
)
def test_callables_that_are_no_rules(rule):
    with pytest.raises(TypeError, match="rule="):
        scale_by_nlcg(rule)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda p: p.gz, r"no attribute 'gz'; the fields are \['g_z', 'y_z', .*'\]\)"),
        (lambda p, q: p.g_z, r"\(TypeError: .* missing 1 required positional argument"),
        (lambda p: float(p.g_z), r"\(ConcretizationTypeError: [^\n]*\); it must be"),
    ],
)
def test_a_rule_that_cannot_be_traced_is_reported_with_the_cause(rule, message):
    with pytest.raises(TypeError, match=message):
        scale_by_nlcg(rule)
