"""The decision on beta, by hand: scalars in, scalars out, no tree and no jit."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax.direction.beta import decide
from nlcg_optax.direction.options import checked_options
from nlcg_optax.direction.products import Measured
from nlcg_optax.direction.state import ScaleByNlcgState, no_diagnostics

f32 = jnp.float32


def measured(**products):
    """gᵀg = gᵀz = 4, dᵀg = -1, zᵀz = 4, dᵀz = -1, yᵀz = 3, unless given."""
    given = {
        "g_g": 4.0,
        "d_g": -1.0,
        "g_z": 4.0,
        "z_z": 4.0,
        "d_z": -1.0,
        "y_z": 3.0,
        "d_y": 1.0,
        "g_z_prev": 1.0,
        "y_p_y": 5.0,
        "noise": 0.0,
        **products,
    }
    arrays = {name: jnp.asarray(x, f32) for name, x in given.items()}
    return Measured(**arrays, rounding=2.0**-17)


def before(**scalars):
    """State after one step: ρ_prev = 8, slope -2, dᵀd = 2, no average yet."""
    given = {
        "count": 1,
        "g_prev_z_prev": 8.0,
        "d_g_prev": -2.0,
        "d_d": 2.0,
        "d_pinv_d": 2.0,
        "beta_average": 0.0,
        **scalars,
    }
    count = jnp.int32(given.pop("count"))
    return ScaleByNlcgState(
        count=count,
        direction=(),
        grad_prev=(),
        precond_grad_prev=(),
        preconditioner_state=(),
        diagnostics=no_diagnostics(f32),
        **{name: jnp.asarray(x, f32) for name, x in given.items()},
    )


def decision(rule="fr", products=None, state=None, **options):
    must_restart = options.pop("must_restart", False)
    preconditioned = options.pop("preconditioned", False)
    chosen = checked_options(rule, **options)._replace(preconditioned=preconditioned)
    return decide(
        chosen, measured(**(products or {})), before(**(state or {})), must_restart
    )


def test_a_usual_step():
    found = decision("fr")
    assert found.finite
    assert not found.restarted
    assert found.beta == 0.5  # 4 / 8
    assert found.beta_average == 0.5  # smoothing 0: the average is β
    assert found.slope == -4.5  # -gᵀz + β dᵀg = -4 - .5
    assert found.d_d == 5.5  # 4 - 2 (.5)(-1) + .25 (2)
    assert found.d_pinv_d == 5.5  # gᵀz - 2 β dᵀg + β² dᵀP⁻¹d
    assert found.g_z == 4.0


def test_the_first_step_restarts():
    found = decision("fr", state={"count": 0})
    assert found.restarted
    assert found.beta == 0.0
    assert found.slope == -4.0
    assert found.d_d == 4.0


@pytest.mark.parametrize(
    ("rule", "options", "expected"),
    [
        (0.7, {}, 0.7),  # a constant has no bounds
        ("fr", {"beta_max": 0.25}, 0.25),
        ("fr", {"beta_min": 0.75, "beta_max": 2.0}, 0.75),
        ("hs", {}, 3.0),  # yᵀz / dᵀy, no bound of its own
        ("hs", {"beta_max": 1.0}, 1.0),
    ],
)
def test_bounds(rule, options, expected):
    np.testing.assert_allclose(decision(rule, **options).beta, expected, rtol=1e-6)


def test_rules_with_bounds_of_their_own():
    large = {"g_z": 80.0, "g_g": 80.0, "z_z": 80.0, "y_z": 80.0}
    assert decision("fr", large).beta == 1.0  # 80 / 8, cut at the paper's 1
    assert decision("pr+", large).beta == 1.0
    assert decision("pr", large).beta == 10.0
    assert decision("pr+", {"y_z": -1.0}).beta == 0.0
    assert decision("pr", {"y_z": -4.0}).beta == -0.5


def test_a_beta_that_is_not_finite_restarts_and_the_average_learns_zero():
    def rule(p):
        return p.g_z / (p.g_prev_z_prev - 8.0)  # 4 / 0

    found = decision(rule, beta_smoothing=0.5, state={"beta_average": 0.6})
    assert found.restarted
    assert found.beta == 0.0
    np.testing.assert_allclose(found.beta_average, 0.3, rtol=1e-6)
    # Not the lower bound, which a clip of zero would give.
    found = decision(
        rule,
        beta_smoothing=0.5,
        beta_min=0.4,
        beta_max=1.0,
        state={"beta_average": 0.6},
    )
    np.testing.assert_allclose(found.beta_average, 0.3, rtol=1e-6)


def test_the_average_takes_the_place_of_beta():
    found = decision("fr", beta_smoothing=0.75, state={"beta_average": 0.1})
    np.testing.assert_allclose(found.beta, 0.75 * 0.1 + 0.25 * 0.5, rtol=1e-6)
    assert found.beta == found.beta_average


@pytest.mark.parametrize(("y_z", "restarted"), [(3.3, False), (3.1, True), (4.9, True)])
def test_powell(y_z, restarted):
    # |g_prevᵀz| = |4 - y_z| against .2 gᵀz = .8; the average still learns from β.
    found = decision("fr", {"y_z": y_z}, restart="powell")
    assert found.restarted == restarted
    assert found.beta == (0.0 if restarted else 0.5)
    assert found.beta_average == 0.5


def test_period_and_other_reasons():
    restarts = [
        bool(decision("fr", state={"count": n}, restart_period=3).restarted)
        for n in range(1, 7)
    ]
    assert restarts == [False, False, True, False, False, True]
    assert decision("fr", must_restart=True).beta == 0.0


def test_the_direction_must_descend_beyond_rounding():
    # -gᵀz + β dᵀg = -4 + .5 (8.1): uphill.
    assert decision("fr", {"d_g": 8.1}).restarted
    # Downhill by 5e-6, less than 2⁻¹⁷ |g| |d|, for |g| = 2 and |d| = 4.24.
    beta, slope = 0.5, 5e-6
    almost = {"d_g": (4.0 - slope) / beta, "d_z": -13.0 / 2}
    assert decision("fr", almost, state={"d_d": 2.0}).restarted
    options = checked_options("fr", restart=None)
    assert not decide(options, measured(d_g=8.1), before(), False).restarted


def test_a_preconditioner_that_ascends_is_replaced_by_the_identity():
    bad = {"g_z": -1.0, "z_z": 9.0, "d_z": 7.0}
    found = decision("fr", bad, preconditioned=True)
    assert found.ascends
    assert found.restarted
    assert found.g_z == 4.0  # gᵀg
    assert found.slope == -4.0
    assert found.d_d == 4.0
    assert not decision("fr", preconditioned=True).ascends


def test_a_gradient_of_zero_ends_the_motion_of_a_preconditioned_direction():
    zero = dict.fromkeys(("g_g", "d_g", "g_z", "z_z", "d_z", "y_z"), 0.0)
    found = decision(0.5, zero, preconditioned=True, restart=None)
    assert found.restarted
    assert found.d_d == 0
    # A preconditioner that makes something of nothing is replaced all the same.
    assert decision(0.5, {**zero, "z_z": 9.0}, preconditioned=True).ascends


@pytest.mark.parametrize("name", ["g_g", "g_z", "z_z", "noise"])
def test_what_is_not_finite_skips_the_step(name):
    for value in (math.nan, math.inf):
        assert not decision("fr", {name: value}).finite


def test_norms_keep_cauchy_schwarz():
    # dᵀd by its recurrence would be 4 + .25 (2) + .5 (2)(-4) = .5, but the slope is
    # -4.5, so that dᵀd >= 4.5² / 4.
    found = decision("fr", {"d_z": 4.0})
    np.testing.assert_allclose(found.d_d, 4.5**2 / 4, rtol=1e-6)
    # Likewise dᵀP⁻¹d >= slope² / gᵀz; with dᵀg = 3.5 both recurrences are too small.
    found = decision("fr", {"d_g": -7.0, "d_z": -7.0}, state={"d_pinv_d": -40.0})
    np.testing.assert_allclose(found.slope, -7.5, rtol=1e-6)
    np.testing.assert_allclose(found.d_pinv_d, 7.5**2 / 4, rtol=1e-6)


def test_noise_is_left_out_of_what_the_rule_reads_only():
    found = decision("pr+", {"noise": 1.0})
    assert found.g_z == 3.0
    assert found.beta == 0.25  # (3 - 1) / 8
    assert found.slope == -4.25  # of the direction itself
    assert found.noise == 1.0


def test_one_beta_per_leaf():
    two = {
        name: jnp.asarray([value, 2 * value], f32)
        for name, value in measured()._asdict().items()
        if name != "rounding"
    }
    state = {
        name: jnp.asarray([value, value], f32)
        for name, value in {
            "g_prev_z_prev": 8.0,
            "d_g_prev": -2.0,
            "d_d": 2.0,
            "d_pinv_d": 2.0,
            "beta_average": 0.0,
        }.items()
    }
    found = decision("fr", two, state=state, scope="per_leaf")
    np.testing.assert_array_equal(found.beta, [0.5, 1.0])
    np.testing.assert_array_equal(found.slope, [-4.5, -10.0])
    assert found.finite.shape == ()
