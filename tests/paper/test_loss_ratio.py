"""`scale_by_loss_ratio`: every row of the table, the undo, losses of any sign."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics, scale_by_nlcg
from nlcg_optax.paper import feed_step_multiplier, scale_by_loss_ratio
from nlcg_optax.paper.loss_ratio import RATIO_TABLE


def online_value(ratio, average):
    """The loss at which value / L equals ``ratio``, L having taken the value in."""
    return 0.7 * ratio * average / (1 - 0.3 * ratio)


@pytest.mark.parametrize(("margin", "shrink", "undo"), RATIO_TABLE)
@pytest.mark.parametrize("threshold", [1.0, 2.0])
def test_every_bad_row(x64, margin, shrink, undo, threshold):
    tx = scale_by_loss_ratio("online", threshold=threshold)
    u0, u1 = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    _, state = tx.update(u0, tx.init(u0), value=10.0)
    value = online_value(1 + threshold * (margin + 0.001), 10.0)
    updates, state = tx.update(u1, state, value=value)
    np.testing.assert_allclose(updates, (1 - undo) * shrink * u1 - undo * u0, rtol=1e-9)
    assert state.step_multiplier == shrink
    assert diagnostics(state)["undone"] == undo
    np.testing.assert_allclose(
        diagnostics(state)["loss_ratio"], 1 + threshold * (margin + 0.001), rtol=1e-12
    )


@pytest.mark.parametrize(("mode", "growth"), [("online", 1.02), ("step", 1.05)])
def test_good_ratios_grow_up_to_one(x64, mode, growth):
    tx = scale_by_loss_ratio(mode, period=1, undo=False)
    u = jnp.ones(1)
    state = tx.init(u)._replace(step_multiplier=jnp.array(0.97))
    multipliers = []
    for value in (4.0, 3.0, 2.0, 1.0):
        _, state = tx.update(u, state, value=value)
        multipliers.append(float(state.step_multiplier))
    expected = [0.97, min(0.97 * growth, 1), min(0.97 * growth**2, 1), 1.0]
    np.testing.assert_allclose(multipliers, expected, rtol=1e-12)


def test_step_mode_acts_once_a_period_on_the_average(x64):
    tx = scale_by_loss_ratio("step", period=3, undo=False)
    u, losses = jnp.ones(1), [1.0, 2.0, 3.0, 4.0, 1.0, 0.5, 0.1]
    state, average, reference, b = tx.init(u), losses[0], losses[0], 1.0
    for t, value in enumerate(losses):
        _, state = tx.update(u, state, value=value)
        average = 0.7 * average + 0.3 * value if t else value
        if t and t % 3 == 0:
            ratio, reference = average / reference, average
            b = 0.5 * b if ratio > 1.15 else min(1.0, 1.05 * b)
        np.testing.assert_allclose(state.step_multiplier, b, rtol=1e-12)
        np.testing.assert_allclose(state.loss_average, average, rtol=1e-12)
    assert b == 0.525


@pytest.mark.parametrize(
    ("before", "now", "ratio"),
    [
        (-2.0, 0.0, 2.0),  # a negative loss that rises is a bad ratio
        (-1.0, -2.0, 0.0),  # and one that falls a good one
        (-1.0, 1.0, 3.0),
        (1.0, -1.0, -1.0),
        (0.0, 0.0, 1.0),
    ],
)
def test_losses_of_any_sign(before, now, ratio):
    tx = scale_by_loss_ratio("step", period=1)
    u = jnp.ones(1)
    _, state = tx.update(u, tx.init(u), value=before)
    average = 0.7 * before + 0.3 * now
    _, state = tx.update(u, state, value=now)
    expected = 1 + 0.3 * (ratio - 1)  # of the averages
    np.testing.assert_allclose(state.loss_average, average, rtol=1e-6)
    np.testing.assert_allclose(diagnostics(state)["loss_ratio"], expected, rtol=1e-6)
    bad = expected > 1.15
    assert state.step_multiplier == (0.5 if bad else 1.0)


def test_rise_from_zero_is_bad_and_finite():
    tx = scale_by_loss_ratio("step", period=1)
    u = jnp.ones(1)
    _, state = tx.update(u, tx.init(u), value=0.0)
    _, state = tx.update(u, state, value=1e30)
    chex.assert_tree_all_finite(state)
    assert state.step_multiplier == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_loss_leaves_the_state(bad):
    tx = scale_by_loss_ratio("online")
    u = jnp.array([1.0, 2.0])
    state = tx.init(u)
    for value in (1.0, 5.0):
        _, state = tx.update(u, state, value=value)
    updates, after = tx.update(u, state, value=bad)
    np.testing.assert_array_equal(updates, state.step_multiplier * u)
    assert after.diagnostics.num_value_skips == 1
    keep = {"diagnostics": None, "previous_updates": None}
    chex.assert_trees_all_equal(after._replace(**keep), state._replace(**keep))


def test_non_finite_update_is_not_remembered():
    tx = scale_by_loss_ratio("online")
    u = jnp.array([1.0, 2.0])
    _, state = tx.update(jnp.array([jnp.nan, 2.0]), tx.init(u), value=1.0)
    updates, state = tx.update(u, state, value=100.0)
    chex.assert_tree_all_finite((updates, state))


def test_memory_only_with_undo():
    params = jnp.zeros([1000])
    for undo, copies in ((True, 1), (False, 0)):
        state = jax.eval_shape(scale_by_loss_ratio(undo=undo).init, params)
        sizes = [x.size for x in jax.tree.leaves(state) if x.ndim]
        assert sum(sizes) == 1000 * copies


def test_multiplier_is_fed_back_one_step_late():
    seen = []

    def spy(updates, state, params=None, *, step_multiplier, **extra):
        seen.append(float(step_multiplier))
        return updates, state

    direction = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), spy)
    tx = feed_step_multiplier(direction, scale_by_loss_ratio("online"))
    u = jnp.ones(1)
    state = tx.init(u)
    for value in (1.0, 100.0, 10000.0):
        _, state = tx.update(u, state, value=value)
    assert seen == [1.0, 1.0, 0.5]


def test_a_controller_without_a_multiplier_is_refused_at_the_start():
    tx = feed_step_multiplier(scale_by_nlcg("fr"), optax.scale(0.1))
    with pytest.raises(TypeError, match="state of type EmptyState without `step_mult"):
        tx.init(jnp.ones(1))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "offline"}, "mode='offline' is unknown; allowed are"),
        ({"period": 0}, "period=0 must be an integer of at least 1"),
        ({"threshold": 0.0}, "threshold=0.0 must be finite and greater than 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        scale_by_loss_ratio(**kwargs)
    with pytest.raises(TypeError, match="undo='no' must be True or False"):
        scale_by_loss_ratio(undo="no")


def test_bad_value():
    tx = scale_by_loss_ratio()
    u = jnp.ones(1)
    with pytest.raises(ValueError, match="update needs `value`"):
        tx.update(u, tx.init(u))
    with pytest.raises(ValueError, match=r"needs a real scalar `value`.*shape \(2,\)"):
        tx.update(u, tx.init(u), value=jnp.ones(2))
    with pytest.raises(TypeError, match="controller='step' is a str"):
        feed_step_multiplier(optax.identity(), "step")


def test_the_multipliers_of_nested_controllers_are_multiplied():
    seen = []

    def update(updates, state, params=None, *, step_multiplier, **extra_args):
        seen.append(float(step_multiplier))
        return updates, state

    direction = optax.GradientTransformationExtraArgs(lambda params: (), update)
    inner = feed_step_multiplier(direction, scale_by_loss_ratio("online"))
    tx = feed_step_multiplier(inner, scale_by_loss_ratio("online"))
    grad = jnp.ones(1)
    state = tx.init(grad)
    for value in (1.0, 2.0, 1.0):
        outer = float(state[1].step_multiplier)
        own = float(state[0][1].step_multiplier)
        _, state = tx.update(grad, state, value=value)
        assert seen[-1] == outer * own
    assert seen[-1] < 1
    # A number that the caller gives is one more factor.
    tx.update(grad, state, value=1.0, step_multiplier=0.5)
    np.testing.assert_allclose(
        seen[-1], 0.5 * state[1].step_multiplier * state[0][1].step_multiplier
    )
