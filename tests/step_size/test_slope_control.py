"""The scalars of the slope-ratio step by hand: search, windows, steps back, bounds."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax.step_size.slope_control import ControlOptions, init_control
from nlcg_optax.step_size.slope_judgment import judge, stepped_back
from nlcg_optax.step_size.slope_steering import went_on, with_step

F32 = np.float32
OPTIONS = ControlOptions(1000, -0.4, 0.5, 0.6, 0.4, 1e-3)


def begun(**scalars):
    """The state after a step, with these scalars and otherwise that of the start."""
    state = init_control(OPTIONS, F32)._replace(begun=jnp.array(True))
    given = {k: jnp.asarray(x, getattr(state, k).dtype) for k, x in scalars.items()}
    return state._replace(**given)


def found(**scalars):
    """The state of `begun`, where the search is over."""
    return begun(found=True, **scalars)


@pytest.mark.parametrize(
    ("before", "value", "ends"),
    [
        (1000.0, 999.4, True),  # as both slopes say
        (1000.0, 1000.39, True),  # .99 above that, less than the slope of one
        (1000.0, 1000.41, False),
        (30.0, 33.0, True),  # the slope of one promises 3 % of the loss
        (30.0, 33.5, False),
    ],
)
def test_noise_does_not_end_the_search_for_thirty_steps(before, value, ends):
    began = begun(value=before, slope=-1)
    for count, expected in [(1, ends), (29, ends), (30, True)]:
        control = began._replace(count=jnp.int32(count))
        judgment = judge(control, F32(value), F32(-0.2))
        new, _, _ = went_on(OPTIONS, control, judgment)
        assert bool(new.found) == expected


def test_windows_span_a_fifteenth_of_the_steps_and_the_rate_falls_alike():
    # 150 steps, four windows of 2.5 steps: decays of .9 and .95, a rate of .5 / 4.
    state = found(
        count=150,
        value=100,
        value_average=100,
        value_least=100,
        slope=-1,
        start_slope=-2,
        end_slope=-0.8,
        change=-1.5,
        noise=0.5,
    )
    judgment = judge(state, F32(99), F32(-0.8))
    new, ratio, inferred = went_on(OPTIONS, state, judgment)
    np.testing.assert_allclose(new.start_slope, -1.9, rtol=1e-6)
    np.testing.assert_allclose(new.end_slope, -0.8, rtol=1e-6)
    np.testing.assert_allclose(new.change, -1.45, rtol=1e-6)
    np.testing.assert_allclose(new.value_average, 99.95, rtol=1e-6)
    # The loss fell by 1, and the mean of both slopes is -.9.
    np.testing.assert_allclose(new.noise, 0.95 * 0.5 + 0.05 * 0.1, rtol=1e-5)
    np.testing.assert_allclose(inferred, -1.9, rtol=1e-6)
    np.testing.assert_allclose(ratio, 0.8 / 1.9, rtol=1e-6)
    grown = new.log_step_size - state.log_step_size
    np.testing.assert_allclose(grown, 0.5 / 4 * np.log(1.4 * 1.9 / 1.1), rtol=1e-4)


def test_a_batch_that_is_fitted_does_not_bury_the_step():
    """Its loss bounds the step that is taken, the averaged loss the one that lasts."""
    state = begun()
    new = state._replace(value=F32(1e-6), value_average=F32(1), start_slope=F32(-1e-7))
    new = new._replace(log_step_size=F32(0))
    after, factor = with_step(OPTIONS, state, new, F32(1))
    np.testing.assert_allclose(factor, 1e-6, rtol=1e-5)
    np.testing.assert_allclose(after.log_step_size, 0, atol=1e-6)
    after, _ = with_step(OPTIONS, state, new, F32(100))
    np.testing.assert_allclose(after.log_step_size, np.log(0.01) + 1, rtol=1e-5)


def test_the_slope_of_a_step_uphill_costs_two_percent_of_the_loss_at_most():
    state = begun()
    new = state._replace(value=F32(50), value_average=F32(50), log_step_size=F32(0))
    after, factor = with_step(OPTIONS, state, new, F32(-4))
    np.testing.assert_allclose(factor, 0.02 * 50 / 4, rtol=1e-5)
    np.testing.assert_allclose(after.slope, 1.0, rtol=1e-5)
    assert after.log_step_size == 0


@pytest.mark.parametrize(("ended", "is_braked"), [(0.25, True), (0.2, False)])
def test_the_brake_needs_a_high_averaged_loss_that_the_slopes_explain(ended, is_braked):
    losses = dict.fromkeys(("value", "value_average", "value_least"), 99)
    state = found(slope=-1, start_slope=-1, end_slope=ended, **losses)
    judgment = judge(state, F32(124.5), F32(0.3))
    assert not judgment.back
    new, _, _ = went_on(OPTIONS, state, judgment)
    # The average is .8 99 + .2 124.5, 5.1 and more than 5 % above its least: slopes of
    # a quarter of that in five steps explain it. These are .6 ended + .4 .3 each. As
    # the loss rose, the slope at the start is half of the measured one.
    end = 0.6 * ended + 0.4 * 0.3
    assert (end > 0.25 * 5.1 / 5) == is_braked
    expected = -0.3 if is_braked else np.log(1.4 / (1 + 2 * end))
    grown = new.log_step_size - state.log_step_size
    np.testing.assert_allclose(grown, 0.5 * expected, rtol=1e-4)


def test_the_very_first_loss_is_no_noise():
    state = init_control(OPTIONS, F32)
    after, _, _ = went_on(OPTIONS, state, judge(state, F32(100), F32(0)))
    assert after.noise == 0


@pytest.mark.parametrize(("noise", "is_back"), [(0, True), (3.4, True), (3.6, False)])
def test_a_rise_within_twice_the_noise_of_the_loss_is_no_step_too_far(noise, is_back):
    # From 100 to 107, at slopes of -1 and 4.
    losses = dict.fromkeys(("value", "value_average", "value_least"), 100)
    state = found(slope=-1, start_slope=-1, noise=noise, **losses)
    assert bool(judge(state, F32(107), F32(4)).back) == is_back


@pytest.mark.parametrize(
    ("average", "steps_back", "kept", "lasting"),
    [
        (-1.0, 0, 0.2, 0.2),  # 1 / (1 - r) with r = -4
        (-4.0, 0, 0.2, 0.5),  # the slope of this batch is next to none: r = -1
        (-2.0, 0, 0.2, 1 / 3),
        (-0.5, 0, 0.2, 0.2),  # it is steep: r = -4
        (-1.0, 1, 0.2, 0.5),  # it goes on
    ],
)
def test_a_step_back_shortens_later_steps_by_the_averaged_slope(
    average, steps_back, kept, lasting
):
    losses = dict.fromkeys(("value", "value_average", "value_least"), 100)
    state = found(slope=-1, start_slope=average, steps_back=steps_back, **losses)
    judgment = judge(state, F32(107), F32(4))
    assert judgment.back
    np.testing.assert_allclose(judgment.kept, kept, rtol=1e-6)
    after = stepped_back(state, judgment)
    np.testing.assert_allclose(after.slope, -kept, rtol=1e-6)
    shrunk = after.log_step_size - state.log_step_size
    np.testing.assert_allclose(shrunk, np.log(lasting), rtol=1e-4)


@pytest.mark.parametrize(("num_steps", "most"), [(1000, 1.0), (None, 0.5)])
def test_a_step_size_that_was_found_grows_by_less(num_steps, most):
    options = OPTIONS._replace(num_steps=num_steps)
    # Slopes that do not change, and a loss that falls by them: r is one.
    slopes = dict.fromkeys(("slope", "start_slope", "end_slope", "change"), -1)
    state = found(value=100, value_average=100, value_least=100, **slopes)
    after, ratio, _ = went_on(options, state, judge(state, F32(99), F32(-1)))
    np.testing.assert_allclose(ratio, 1, rtol=1e-6)
    grown = after.log_step_size - state.log_step_size
    np.testing.assert_allclose(grown, 0.5 * most, rtol=1e-5)
    # An end slope of .6 (-1) + .4 6 = 1.8 halves it, and the rate is .5.
    after, ratio, _ = went_on(options, state, judge(state, F32(101), F32(6)))
    np.testing.assert_allclose(ratio, -1.8, rtol=1e-5)
    fallen = after.log_step_size - state.log_step_size
    np.testing.assert_allclose(fallen, -0.5 * np.log(2), rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "average", "noise", "is_braked"),
    [
        (100, 1.4, 1.2, True),
        (100, 1.25, 0.7, False),  # a quarter above the least
        (100, 1.4, 1.3, False),  # within the noise of the average
        (30, 1.4, 0.7, False),  # in windows of five steps
    ],
)
def test_a_rise_that_no_slope_explains_brakes_once_it_is_more_than_noise(
    count, average, noise, is_braked
):
    """After 100 steps windows are 2.7 times wider, that of the loss is 13 steps."""
    slopes = dict.fromkeys(("slope", "start_slope"), -0.1)
    state = found(
        count=count, value=average, value_average=average, value_least=1, noise=noise,
        **slopes,
    )  # fmt: skip
    # On the parabola, with the slope zero at the end: r is near zero.
    new, ratio, _ = went_on(OPTIONS, state, judge(state, F32(average - 0.05), F32(0)))
    assert abs(ratio) < 0.1
    wider = max(count * 0.4 / 15, 1)
    expected = -0.3 if is_braked else np.log(1.4 / (1 - ratio))
    grown = new.log_step_size - state.log_step_size
    np.testing.assert_allclose(grown, 0.5 / wider * expected, rtol=1e-4)
    endless = OPTIONS._replace(num_steps=None)
    new, _, _ = went_on(endless, state, judge(state, F32(average - 0.05), F32(0)))
    assert new.log_step_size >= state.log_step_size


@pytest.mark.parametrize("is_found", [False, True])
def test_losses_in_a_row_that_are_not_finite_shorten_later_steps_three_times(is_found):
    """But one alone does not, once the step size was found: the batch may be bad."""
    state = begun(slope=-1, start_slope=-1, found=is_found)
    shrunk = []
    for _ in range(6):
        judgment = judge(state, F32(np.nan), F32(0))
        after = stepped_back(state, judgment)
        shrunk.append(float(after.log_step_size - state.log_step_size))
        state = after
    kept = ([1.0] if is_found else []) + [0.5, 0.25, 0.125, 1, 1, 1]
    np.testing.assert_allclose(shrunk, np.log(kept[:6]), rtol=1e-4)
    # What is left of the step itself goes on to shrink.
    np.testing.assert_allclose(state.slope, -(0.5**6) * 0.05**2 / 16, rtol=1e-4)


def test_a_slope_that_overflows_makes_no_step():
    state = begun()
    new = state._replace(value=F32(1), value_average=F32(1), log_step_size=F32(0))
    after, factor = with_step(OPTIONS, state, new, F32(np.inf))
    assert factor == 0
    assert after.slope == 0
    assert np.isfinite(after.log_step_size)


@pytest.mark.parametrize(
    ("before", "value", "end", "count"),
    [
        (1.0, 0.05, -0.9, 1),  # on the line of slope one to below zero
        (1.0, 0.25, -0.5, 0),  # a parabola with its minimum of zero
        (1.0, 0.05, -0.5, 0),
        (1.0, 0.3, -0.9, 0),  # not by the slopes
        (2.0, 1.05, -0.95, 0),  # a step that promises half of the loss
        (1.0, 1.0, -1.0, 1),  # nothing but the slope is seen
        (1.0, -0.1, -0.1, 1),
    ],
)
def test_signs_that_zero_is_no_bound_of_the_loss(before, value, end, count):
    losses = dict.fromkeys(("value", "value_average", "value_least"), before)
    state = found(slope=-1, start_slope=-1, **losses)
    new, _, _ = went_on(OPTIONS, state, judge(state, F32(value), F32(end)))
    assert new.crossings == count
    # Two in a row last.
    state = state._replace(crossings=jnp.int32(1))
    new, _, _ = went_on(OPTIONS, state, judge(state, F32(value), F32(end)))
    assert new.crossings == 2 * count
    state = state._replace(crossings=jnp.int32(2))
    new, _, _ = went_on(OPTIONS, state, judge(state, F32(value), F32(end)))
    assert new.crossings == 2


@pytest.mark.parametrize(
    ("first", "promise"),
    [
        (3.0, 3.0),  # as much as was gained
        (-5.0, 5.0),  # or was lost
        (100.0, 30.0),  # but ten times the usual promise at most
    ],
)
def test_without_a_bound_of_the_loss_a_step_may_promise_all_that_was_gained(
    first, promise
):
    state = begun()._replace(first_value=F32(first))
    new = state._replace(value=F32(1e-6), value_average=F32(1e-6), start_slope=F32(-3))
    new = new._replace(log_step_size=F32(9))
    _, factor = with_step(OPTIONS, state, new, F32(2))
    np.testing.assert_allclose(factor, 0.5e-6, rtol=1e-5)
    new = new._replace(crossings=jnp.int32(2))
    after, factor = with_step(OPTIONS, state, new, F32(2))
    np.testing.assert_allclose(factor, promise / 2, rtol=1e-5)
    expected = np.log(abs(first) / 2) + 1
    np.testing.assert_allclose(after.log_step_size, expected, rtol=1e-5)


def test_the_search_slows_down_where_the_loss_has_no_bound():
    slopes = dict.fromkeys(("slope", "start_slope"), -1)
    state = begun(value=-10, **slopes)
    for crossings, most in [(0, 2.3), (2, 0.7)]:
        known = state._replace(crossings=jnp.int32(crossings))
        new, _, _ = went_on(OPTIONS, known, judge(known, F32(-10.99), F32(-0.99)))
        grown = new.log_step_size - state.log_step_size
        np.testing.assert_allclose(grown, most, rtol=1e-5)


def test_a_count_does_not_wrap():
    most = 2**31 - 1
    state = begun()._replace(count=jnp.int32(most))
    new, _, _ = went_on(OPTIONS, state, judge(state, F32(1), F32(0)))
    assert new.count == most
    assert stepped_back(state, judge(state, F32(np.nan), F32(0))).count == most
