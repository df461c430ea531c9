"""`scale_by_slope_ratio`: the secant by hand, steps back, refusals, the horizon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import (
    diagnostics,
    scale_by_nlcg,
    scale_by_slope_ratio,
    tuning_free_nlcg,
)

F32 = np.float32


def told(tx, pairs, state=None):
    """The updates for pairs of a loss and a gradient, and the last state."""
    state = tx.init(jnp.zeros(1)) if state is None else state
    out = []
    for value, grad in pairs:
        update, state = tx.update(jnp.array([grad], F32), state, value=F32(value))
        out.append(float(update[0]))
    return out, state


def scalars(state):
    return {name: float(x) for name, x in diagnostics(state).items()}


def test_the_search_is_the_secant_along_a_parabola():
    # f = 2 x^2 from x = 1, gradient 4x: the factor is bounded by a hundredth of
    # f / g'g = 1/8 at first, and then is 1.4 / (1 - r) of the last one, r = 1 - 4 a,
    # or e^2.3 of it, whichever is smaller.
    tx = scale_by_slope_ratio(optax.identity(), 100, initial_step_size=0.1)
    state, x, a = tx.init(jnp.zeros(1)), 1.0, 0.01 / 8
    for t in range(3):
        update, state = tx.update(jnp.array([4 * x]), state, value=F32(2 * x**2))
        # And by f / g'g once the first step was taken, and by the decay to zero.
        factor = min(a * (1 - t / 100), 1 / 8 if t else a)
        np.testing.assert_allclose(update, [factor * 4 * x], rtol=1e-5)
        x -= factor * 4 * x
        a *= min(1.4 / (4 * factor), np.exp(2.3))
    assert scalars(state)["num_steps_back"] == 0


def test_windows_average_both_slopes_once_the_step_is_found():
    tx = scale_by_slope_ratio(
        optax.identity(),
        100,
        window_decay=0.5,
        adaptation_rate=0.25,
        initial_step_size=1.0,
    )
    # Large losses, so that the promise of a step is no bound.
    pairs = [(1000.0, 1.0), (999.4, 0.2), (999.5, 0.1)]
    (first, second, _), state = told(tx, pairs)
    assert first == 1
    # Slopes where the steps began and ended: -1 and -.2 first, whose ratio .2 ends the
    # search, as the loss fell by their mean; then -.2 second and -.1 second.
    after_one = (1.4 / 0.8) ** 0.25
    np.testing.assert_allclose(second / 0.2, after_one * 0.99, rtol=1e-4)
    start = -(1 + 0.2 * second) / 2
    end = -(0.2 + 0.1 * second) / 2
    change = (-0.6 + 0.1) / 2
    inferred = 2 * change - end
    assert start < inferred < end
    found = scalars(state)
    np.testing.assert_allclose(found["measured_slope"], start, rtol=1e-4)
    np.testing.assert_allclose(found["inferred_slope"], inferred, rtol=1e-3)
    ratio = end / ((start + inferred) / 2)
    np.testing.assert_allclose(found["slope_ratio"], ratio, rtol=1e-3)
    step = after_one * (1.4 / (1 - ratio)) ** 0.25
    np.testing.assert_allclose(found["slope_step_size"], step, rtol=1e-3)


def test_without_a_horizon_the_slope_is_inferred_from_the_loss():
    tx = scale_by_slope_ratio(optax.identity(), initial_step_size=1.0)
    # One step of length one from a loss of 100 and slope -1 to 99.75 and slope -.1: by
    # the mean of the slopes the loss fell from a slope of 2 (-.25) + .1 = -.4.
    _, state = told(tx, [(100.0, 1.0), (99.75, 0.1)])
    found = scalars(state)
    np.testing.assert_allclose(found["inferred_slope"], -0.4, rtol=1e-4)
    # The search ended with this step, so that the window is this step alone.
    np.testing.assert_allclose(found["slope_ratio"], 0.25, rtol=1e-4)
    assert np.exp(0.5) < 1.4 / 0.75  # which is the most without a horizon
    np.testing.assert_allclose(found["slope_step_size"], np.exp(0.5 * 0.3), rtol=1e-4)
    # Noise of the loss: where it is convex the slope was no less steep before.
    _, state = told(tx, [(100.0, 1.0), (100.4, 0.1)])
    np.testing.assert_allclose(scalars(state)["slope_ratio"], 1.0, rtol=1e-6)
    # Beyond the minimizer, and no decrease: twice the minimizer or more.
    _, state = told(tx, [(100.0, 1.0), (100.5, -0.1)])
    np.testing.assert_allclose(scalars(state)["slope_ratio"], -1.8, rtol=1e-6)


def test_a_step_too_far_goes_back_to_the_minimizer_of_the_parabola():
    tx = scale_by_slope_ratio(scale_by_nlcg(0.5), 100, initial_step_size=1.0)
    (taken,), before = told(tx, [(100.0, 1.0)])
    (back,), after = told(tx, [(107.0, -4.0)], before)
    # r = -4: the minimizer is at 1 / (1 - r) = .2 of the step, .8 of it is undone.
    np.testing.assert_allclose(taken, 1.0, rtol=1e-6)
    np.testing.assert_allclose(back, -0.8 * taken, rtol=1e-6)
    np.testing.assert_allclose(after.last_step, 0.2 * taken, rtol=1e-6)
    np.testing.assert_allclose(scalars(after)["slope_step_size"], 0.2, rtol=1e-5)
    np.testing.assert_allclose(after.control.slope, -0.2 * taken, rtol=1e-6)
    for was, is_ in zip(
        jax.tree.leaves(before.direction_state),
        jax.tree.leaves(after.direction_state),
        strict=True,
    ):
        np.testing.assert_array_equal(was, is_)


@pytest.mark.parametrize(
    "bad", [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, -np.inf)]
)
def test_what_is_not_finite_halves_the_step_and_reaches_no_state(bad):
    tx = scale_by_slope_ratio(scale_by_nlcg("pr+"), initial_step_size=0.5)
    (zero,), state = told(tx, [bad])  # nothing to go back along
    assert zero == 0
    (taken, back, further), state = told(tx, [(100.0, 1.0), bad, bad], state)
    np.testing.assert_allclose(taken, 0.25, rtol=1e-6)
    np.testing.assert_allclose(back, -0.5 * taken, rtol=1e-6)
    np.testing.assert_allclose(further, -0.75 * 0.5 * taken, rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    found = scalars(state)
    assert found["num_not_finite"] == found["num_steps_back"] == 3
    np.testing.assert_allclose(found["slope_step_size"], 0.5**4 / 2, rtol=1e-5)


def test_a_loss_that_stays_high_starts_the_search_again():
    tx = scale_by_slope_ratio(optax.identity(), initial_step_size=0.5)
    # The slope of the first one explains the rise; then nothing helps.
    updates, state = told(tx, [(1.0, 1.0), (1e3, -1e5), *[(1e3, -10.0)] * 8])
    assert sum(update < 0 for update in updates) == 9  # eight back, then a new one
    found = scalars(state)
    assert (found["num_steps_back"], found["num_jumps"]) == (8, 1)
    assert not state.control.found
    assert state.control.value == state.control.value_least == 1e3
    # From there it finds its step as it did at first.
    before = found["slope_step_size"]
    _, state = told(tx, [(999.9, -10.0)], state)
    growth = scalars(state)["slope_step_size"] / before
    np.testing.assert_allclose(growth, np.exp(2.3), rtol=1e-4)


def test_a_loss_that_no_slope_explains_is_no_step_too_far():
    tx = scale_by_slope_ratio(optax.identity(), initial_step_size=0.5)
    # A step of .01 along slopes of 1 and -10, and a loss that is a hundred times more.
    updates, state = told(tx, [(1.0, 1.0), (100.0, -10.0)])
    assert updates[1] < 0  # on, downhill
    assert scalars(state)["num_steps_back"] == 0


def test_updates_fall_to_zero_at_the_horizon_and_stay_there():
    tx = scale_by_slope_ratio(optax.identity(), 4, hold_after=0.0)
    # Twice the minimizer each time: held from the second update on, and not braked.
    updates, _ = told(tx, [(1e6, 1.0), (1e6, -1.0)] * 3)
    expected = 1e-3 * np.array([1, -0.75, 0.5, -0.25, 0, 0])
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_a_held_step_that_is_far_too_short_grows_again():
    tx = scale_by_slope_ratio(optax.identity(), 100, hold_after=0.5)
    # Found at the second update, and twice the minimizer until half way.
    _, state = told(tx, [(1e6, 1.0), (1e6, -1.0)] * 30)
    before = scalars(state)["slope_step_size"]
    _, state = told(tx, [(1e6, 1.0)] * 10, state)
    # At least by (1.4 / (1 - r)) / 2 with the ratio r that is left of the window.
    assert scalars(state)["slope_step_size"] > 1.1 * before


def test_the_units_of_loss_and_parameters_do_not_matter():
    # A direction of no unit: the first step alone is in the units of a parameter.
    sign = optax.stateless(lambda updates, _: jax.tree.map(jnp.sign, updates))
    scale = jnp.array([1.0, 30.0])

    def run(loss_unit, unit):
        tx = scale_by_slope_ratio(sign, 40, initial_step_size=unit / 1024)

        def loss(x):
            return loss_unit * jnp.sum(scale * (x / unit - 1) ** 2)

        def step(carry, _):
            x, state = carry
            value, grad = jax.value_and_grad(loss)(x)
            update, state = tx.update(grad, state, x, value=value)
            return (x - update, state), x / unit

        x = jnp.zeros(2)
        return jax.jit(lambda: jax.lax.scan(step, (x, tx.init(x)), length=40)[1])()

    # Powers of two commute with every rounding but those of log and exp.
    expected = run(1.0, 1.0)
    np.testing.assert_allclose(run(64.0, 1.0), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(run(1.0, 1 / 16), expected, rtol=1e-3, atol=1e-4)


# --- what stands around it ------------------------------------------------------------


def test_inside_a_clipped_direction_has_the_slopes_of_the_whole_gradient():
    # A direction of 1 and gradients of 4 and 2, or gradients of 1 and 1.
    clip = optax.clip_by_global_norm(1.0)
    for tx, slopes in (
        (scale_by_slope_ratio(clip), (4, 2)),
        (optax.chain(clip, scale_by_slope_ratio(optax.identity())), (1, 1)),
    ):
        updates, state = told(tx, [(1e6, 4.0), (1e6 - 1, 2.0)])
        first, then = slopes
        growth = min(1.4 / (1 - min(then / first, 0.999)), np.exp(2.3))
        np.testing.assert_allclose(updates, [1e-3, 1e-3 * growth], rtol=1e-4)
        found = scalars(state)
        np.testing.assert_allclose(found["measured_slope"], -1e-3 * first, rtol=1e-5)


def test_inside_weight_decay_is_a_part_of_the_direction():
    inner = optax.chain(optax.identity(), optax.add_decayed_weights(0.5))
    tx = scale_by_slope_ratio(inner, initial_step_size=0.125)
    x, grads = jnp.array([2.0, -4.0]), np.array([[3.0, 1.0], [-1.0, 2.0]], F32)
    state, updates = tx.init(x), []
    for grad in grads:
        update, state = tx.update(jnp.asarray(grad), state, x, value=F32(1e6))
        updates.append(np.asarray(update))
    # The direction is grad + x / 2, along which the slope is that of the gradient.
    step = 0.125 * (grads[0] + np.array([1.0, -2.0]))
    np.testing.assert_allclose(updates[0], step, rtol=1e-6)
    slopes = -step @ grads[0], -step @ grads[1]
    found = scalars(state)
    np.testing.assert_allclose(found["measured_slope"], slopes[0], rtol=1e-6)
    # The loss did not change: the slopes were opposite, and r is -1.
    assert slopes[0] < -slopes[1] < 0
    np.testing.assert_allclose(found["inferred_slope"], -slopes[1], rtol=1e-6)
    shrunk = 0.125 * (1.4 / 2) ** 0.3
    np.testing.assert_allclose(found["slope_step_size"], shrunk, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [None, 1000])
def test_a_factor_after_it_is_made_up_for_until_the_step_is_held(num_steps):
    # f = 2 x^2 + 100: r = -.4 at steps of 1.4 / 4 times the gradient, whatever
    # multiplies them; the first is .001, and each is at most e^2.3 times the last.
    for factor in (1.0, 0.125):
        tx = scale_by_slope_ratio(optax.identity(), num_steps)
        state, x = tx.init(jnp.zeros(1)), 1.0
        for _ in range(5):
            value, grad = F32(2 * x**2 + 100), jnp.array([4 * x], F32)
            update, state = tx.update(grad, state, value=value)
            x -= factor * float(update[0])
        found = scalars(state)["slope_step_size"]
        # 2e-3 of annealing over five steps, and float32 losses of 100.
        np.testing.assert_allclose(factor * found, 1.4 / 4, rtol=1e-2)


@pytest.mark.parametrize(("factor", "growth"), [(0.6, 1.0), (0.3, (0.5 / 0.3) ** 0.3)])
def test_a_held_step_is_no_less_than_half_of_what_it_should_be(factor, growth):
    tx = scale_by_slope_ratio(
        optax.identity(), 100, hold_after=0.1, initial_step_size=1.0
    )
    state, angle, sizes = tx.init(jnp.zeros(2)), 0.0, []
    value, last = 1e3, np.zeros(2)
    for t in range(30):
        grad = jnp.array([np.cos(angle), np.sin(angle)], F32)
        value -= last @ grad / 2  # the loss falls by the mean of both slopes
        last, state = tx.update(grad, state, value=F32(value))
        value -= last @ grad / 2
        sizes.append(scalars(state)["slope_step_size"])
        # The slope at the end of this step over that at its start: -.4 until the step
        # is held, and then as on a parabola where a factor shortens it as well.
        left = (1 - t / 100) / 0.9 * factor if t > 9 else 1.0
        angle += np.arccos(1 - 1.4 * left)
    # The ratio lags by 2.5 steps, with the average: 3.5 % of 1 - r, to the power of .3.
    np.testing.assert_allclose(sizes[-1] / sizes[-2], growth, rtol=1.1e-2)


@pytest.mark.usefixtures("standard_promotion")
def test_equal_micro_batches_of_multi_steps_are_the_steps_of_one():
    (params, _), _ = solved(step_of(scale_by_nlcg("pr+")), 20)
    (again, state), _ = solved(multi_steps(step_of(scale_by_nlcg("pr+")), 2), 40)
    # The mean of two equal gradients, by a multiplication more or less.
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert state.inner_opt_state[0].control.count == 20


# --- in a program ---------------------------------------------------------------------

TARGET = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([3.0, -1.0])}


def loss(params):
    return sum(
        jnp.sum((x - y) ** 2)
        for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(TARGET), strict=True)
    )


def solved(tx, steps=80):
    tx = optax.with_extra_args_support(tx)
    params = jax.tree.map(jnp.zeros_like, TARGET)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(
        (params, tx.init(params))
    )


def step_of(direction, **kwargs):
    return optax.chain(scale_by_slope_ratio(direction, **kwargs), optax.scale(-1.0))


def multi_steps(tx, every):
    # Its `gradient_transformation()` would drop the extra arguments.
    wrapped = optax.MultiSteps(tx, every)
    return optax.GradientTransformationExtraArgs(wrapped.init, wrapped.update)


COMPOSED = {
    "adam": lambda: step_of(optax.scale_by_adam(), num_steps=80),
    # Its rate of 1 and the sign of it are taken back.
    "muon": lambda: step_of(optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0))),
    "a schedule on top": lambda: optax.chain(
        step_of(scale_by_nlcg("pr+")),
        optax.scale_by_schedule(optax.linear_schedule(1.0, 0.5, 80)),
    ),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(4.0), step_of(scale_by_nlcg("pr+"))
    ),
    "weight decay": lambda: step_of(
        optax.chain(scale_by_nlcg("pr+"), optax.add_decayed_weights(1e-4))
    ),
    "MultiSteps": lambda: multi_steps(step_of(scale_by_nlcg("pr+")), 2),
    "partition": lambda: optax.partition(
        {"b": step_of(optax.identity()), "w": step_of(scale_by_nlcg("pr+"))},
        {"b": "b", "w": "w"},
    ),
    "masked": lambda: optax.chain(
        optax.masked(step_of(scale_by_nlcg("pr+")), {"w": True, "b": False}),
        optax.masked(optax.scale(-0.1), {"w": False, "b": True}),
    ),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", COMPOSED)
def test_composes(name):
    (params, _), values = solved(COMPOSED[name]())
    assert loss(params) < 1e-2 * values[0]
    assert np.max(values) < 3 * values[0]  # the momentum of Adam carries on


def test_the_argument_of_a_loss_is_asked_for():
    tx = scale_by_slope_ratio(optax.identity())
    x = jnp.zeros(1)
    with pytest.raises(ValueError, match="scale_by_slope_ratio: update needs `value`"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="real scalar `value`, but got shape"):
        tx.update(x, tx.init(x), x, value=x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"direction": 3}, TypeError, "direction=3 is a int"),
        ({"num_steps": 0}, ValueError, "num_steps=0 must be an integer"),
        ({"num_steps": 1.5}, ValueError, "num_steps=1.5 must be an integer"),
        ({"target_ratio": 1.0}, ValueError, "target_ratio=1.0 must be below 1"),
        ({"adaptation_rate": 0.0}, ValueError, "adaptation_rate=0.0 must be"),
        ({"adaptation_rate": 2.0}, ValueError, "adaptation_rate=2.0 must be at most 1"),
        ({"window_decay": 1.0}, ValueError, "window_decay=1.0 is not in"),
        ({"hold_after": 1.5}, ValueError, "hold_after=1.5 must be at most 1"),
        ({"initial_step_size": 0.0}, ValueError, "initial_step_size=0.0 must be"),
    ],
)
def test_arguments_out_of_their_range_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        scale_by_slope_ratio(**{"direction": optax.identity(), **arguments})


@pytest.mark.parametrize("least", [-1.0, -23.0, -23.05])
@pytest.mark.parametrize("num_steps", [100, None])
def test_a_loss_may_pass_through_zero(num_steps, least):
    """From 23.05 above its least value, with the curvatures .1 to 10."""
    curvatures = jnp.logspace(-1, 1, 20)

    def loss(x):
        return 0.5 * jnp.sum(curvatures * x**2) + least

    tx = tuning_free_nlcg(num_steps)

    def step(carry, _):
        x, state = carry
        value, grad = jax.value_and_grad(loss)(x)
        updates, state = tx.update(grad, state, x, value=value)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.ones(20)
    carry = (start, tx.init(start))
    (x, _), _ = jax.jit(lambda: jax.lax.scan(step, carry, length=100))()
    assert loss(x) < least + 1e-4


def test_products_that_overflow_are_counted_and_forgotten():
    tx = scale_by_slope_ratio(optax.identity())
    x = jnp.ones(4)
    state, update = tx.init(x), jax.jit(tx.update)
    for t in range(60):
        grad = jnp.full(4, 1e20) if t == 5 else x
        updates, state = update(grad, state, value=0.5 * jnp.sum(x**2))
        x -= updates
    assert scalars(state)["num_not_finite"] == 1
    assert jnp.max(jnp.abs(x)) < 1e-6
