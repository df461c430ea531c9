"""`decide`, branch by branch, on numbers worked out by hand; no program is traced."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax.direction.beta import decide
from nlcg_optax.direction.options import checked_options
from nlcg_optax.direction.products import Measured
from nlcg_optax.direction.state import ScaleByNlcgState

# After one step from g_prev = (2, 0) along d = (-2, 0), the gradient is g = (1, 1),
# and z = g: y = (-1, 1). FR is 2/4, so that d = (-2, -1), dᵀg = -3 and dᵀd = 5.
STATE = {"g_prev_z_prev": 4, "d_g_prev": -4, "d_d": 4, "d_pinv_d": 4, "beta_average": 0}
MEASURED = {"g_g": 2, "d_g": -2, "g_z": 2, "z_z": 2, "d_z": -2, "y_z": 0, "d_y": 2}
MEASURED |= {"g_z_prev": 2, "y_p_y": 2}
NAN = lambda p: p.g_z * jnp.nan
IDENTITY = optax.identity()


def decision(rule="fr", state=(), measured=(), must_restart=False, **options):
    as_float = lambda numbers: {
        k: np.asarray(v, np.float32) for k, v in numbers.items()
    }
    state = STATE | {"count": 1} | dict(state)
    count = np.int32(state.pop("count"))
    trees = dict.fromkeys(("direction", "grad_prev", "precond_grad_prev"))
    trees |= dict.fromkeys(("preconditioner_state", "diagnostics"))
    measured = MEASURED | dict(measured)
    return decide(
        checked_options(rule, **options),
        Measured(**as_float(measured), rounding=2.0**-17),
        ScaleByNlcgState(count=count, **as_float(state), **trees),
        must_restart,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # The rule, and what follows from it.
        (
            {},
            {
                "beta": 0.5,
                "beta_average": 0.5,
                "restarted": False,
                "slope": -3,
                "d_d": 5,
                "d_pinv_d": 5,
                "g_z": 2,
                "g_g": 2,
                "finite": True,
                "ascends": False,
            },
        ),
        # The first step has no previous direction; its β is 0, not beta_min.
        (
            {"state": {"count": 0}, "beta_min": 0.2},
            {"beta": 0, "beta_average": 0, "restarted": True, "slope": -2, "d_d": 2},
        ),
        # Bounds: PR is 0, the constant is 3.
        ({"rule": "pr", "beta_min": 0.2}, {"beta": 0.2, "restarted": False}),
        ({"rule": 3.0, "beta_max": 1.0}, {"beta": 1, "slope": -4, "d_d": 10}),
        # The bounds that rules ask for: FR would be 4, HS -2.
        ({"measured": {"g_z": 16}}, {"beta": 1}),
        ({"rule": "pr+", "measured": {"y_z": 16}}, {"beta": 1}),
        ({"rule": "hs", "measured": {"d_g": -8, "y_z": -4}}, {"restarted": True}),
        ({"rule": "hs", "measured": {"y_z": -1}}, {"beta": -0.5, "slope": -1}),
        ({"rule": "hs", "measured": {"y_z": 8}}, {"beta": 4}),
        # The average: .8 * .1 + .2 * .5.
        (
            {"state": {"beta_average": 0.1}, "beta_smoothing": 0.8},
            {"beta": 0.18, "beta_average": 0.18},
        ),
        # No β to give: zero is averaged in, .8 * .1, and the step restarts.
        (
            {
                "rule": NAN,
                "state": {"beta_average": 0.1},
                "beta_smoothing": 0.8,
                "beta_min": 0.3,
            },
            {"beta": 0, "beta_average": 0.08, "restarted": True},
        ),
        # A restart by a test averages in the β of the rule.
        (
            {
                "state": {"beta_average": 0.1},
                "beta_smoothing": 0.8,
                "must_restart": True,
            },
            {"beta": 0, "beta_average": 0.18, "restarted": True},
        ),
        # Powell: |g_prevᵀz| = |gᵀz - yᵀz| against .2 * 2.
        ({"restart": "powell"}, {"restarted": True, "beta_average": 0.5, "beta": 0}),
        ({"restart": "powell", "measured": {"y_z": 1.9}}, {"restarted": False}),
        ({"restart": "powell", "measured": {"y_z": 2.5}}, {"restarted": True}),
        # Every second step.
        ({"state": {"count": 4}, "restart_period": 2}, {"restarted": True, "beta": 0}),
        ({"state": {"count": 5}, "restart_period": 2}, {"restarted": False}),
        # The descent guard: slope -2 + 3, and -2 + 2 within the rounding.
        (
            {"rule": 1.0, "measured": {"d_g": 3, "d_z": 3}},
            {"beta": 0, "restarted": True, "slope": -2, "beta_average": 1},
        ),
        (
            {"rule": 1.0, "measured": {"d_g": 2 - 1e-6, "d_z": 2}},
            {"restarted": True},
        ),
        (
            {"rule": 1.0, "measured": {"d_g": 3, "d_z": 0}, "ensure_descent": False},
            {"beta": 1, "restarted": False, "slope": 1, "d_d": 6},
        ),
        # dᵀd overflows: 1e38 * 3² .
        ({"rule": 3.0, "state": {"d_d": 1e38}}, {"restarted": True, "d_d": 2}),
        # gᵀP g < 0: P = I instead, and a restart.
        (
            {"preconditioner": IDENTITY, "measured": {"g_z": -1, "z_z": 9, "d_z": 7}},
            {
                "ascends": True,
                "restarted": True,
                "beta": 0,
                "g_z": 2,
                "slope": -2,
                "d_d": 2,
                "finite": True,
            },
        ),
        (
            {
                "preconditioner": IDENTITY,
                "measured": {"g_z": -1, "z_z": 9, "d_z": 7},
                "ensure_descent": False,
            },
            # FR: -1/4, clipped to 0.
            {"ascends": False, "restarted": False, "beta": 0, "slope": 1, "d_d": 9},
        ),
        # Nothing is taken that is not finite.
        ({"measured": {"g_g": np.inf}}, {"finite": False}),
        ({"measured": {"g_z": np.nan}}, {"finite": False}),
        ({"measured": {"z_z": np.nan}}, {"finite": False}),
        ({"measured": {"noise": np.nan}}, {"finite": False}),
        # Cauchy-Schwarz: dᵀd >= (dᵀg)² / gᵀg = 9/2, where rounding gave 4.
        ({"measured": {"z_z": 1}}, {"d_d": 4.5, "slope": -3}),
        ({"state": {"d_pinv_d": 0}}, {"d_pinv_d": 4.5}),
        # Noise in gᵀz: the rule reads 1, the guards 2. FR is 1/4, y_z is -1.
        (
            {"measured": {"noise": 1}},
            {"beta": 0.25, "g_z": 1, "noise": 1, "slope": -2.5},
        ),
        ({"rule": "pr", "measured": {"noise": 1}}, {"beta": -0.25}),
        # With P = I no noise was measured.
        (
            {"preconditioner": IDENTITY, "measured": {"g_z": -1, "noise": np.inf}},
            {"finite": True, "noise": 0, "g_z": 2},
        ),
    ],
)
def test_decisions(given, expected):
    found = decision(**given)._asdict()
    for name, value in expected.items():
        # A few float32 operations on numbers of order one.
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_every_leaf_has_its_own_decision():
    pairs = lambda numbers, **other: {k: [v, v] for k, v in numbers.items()} | other
    found = decision(
        "fr",
        scope="per_leaf",
        state=pairs(STATE, g_prev_z_prev=[4, 8], d_g_prev=[-4, -4]),
        measured=pairs(MEASURED, d_g=[-2, 9]),
    )
    np.testing.assert_array_equal(found.beta, [0.5, 0])
    np.testing.assert_array_equal(found.beta_average, [0.5, 0.25])
    np.testing.assert_array_equal(found.restarted, [False, True])
    assert found.finite.shape == ()
    bad = decision(
        "fr",
        scope="per_leaf",
        state=pairs(STATE),
        measured=pairs(MEASURED, g_g=[2, np.inf]),
    )
    assert not bad.finite
