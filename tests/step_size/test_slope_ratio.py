"""`scale_by_slope_ratio`: the secant by hand, steps back, refusals, the horizon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import (
    minimize,
    scale_by_nlcg,
    scale_by_slope_ratio,
    tuning_free_nlcg,
)
from tests.step_size.told_losses import scalars, told

F32 = np.float32


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


@pytest.mark.parametrize(("num_steps", "last"), [(30, 12), (600, 24), (None, 28)])
def test_the_ratio_shortens_the_step_in_the_first_steps_only(num_steps, last):
    tx = scale_by_slope_ratio(optax.identity(), num_steps)
    state, sizes = tx.init(jnp.zeros(1)), []
    # Twice the minimizer each time, so that r is -1 and steering shortens the step.
    for t in range(29):
        _, state = told(tx, [(1e6, (-1.0) ** t)], state)
        sizes.append(scalars(state)["slope_step_size"])
    # The search ends at the second update. The count is that of the steps before.
    shortened = np.flatnonzero(np.diff(sizes) < 0) + 1
    np.testing.assert_array_equal(shortened, np.arange(1, last + 1))


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


def test_the_argument_of_a_loss_is_asked_for():
    tx = scale_by_slope_ratio(optax.identity())
    x = jnp.zeros(1)
    with pytest.raises(ValueError, match=r"tuning_free_nlcg\): update needs `value`"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="real scalar `value`, but got shape"):
        tx.update(x, tx.init(x), x, value=x)
    for pair in [(1.0, {"logits": x}), [1.5], "1.5"]:
        with pytest.raises(TypeError, match=f"but got a {type(pair).__name__}"):
            tx.update(x, tx.init(x), x, value=pair)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"direction": 3}, TypeError, "direction=3 is a int"),
        ({"num_steps": 0}, ValueError, "num_steps=0 must be an integer"),
        ({"num_steps": 1.5}, ValueError, "num_steps=1.5 .*, not a learning rate"),
        ({"num_steps": 2**31}, ValueError, "at least 1 and at most 2147483647"),
        ({"num_steps": jnp.array([3])}, ValueError, "num_steps=.* must be an integer"),
        ({"target_ratio": 1.0}, ValueError, "target_ratio=1.0 must be finite and bel"),
        ({"target_ratio": -jnp.inf}, ValueError, "target_ratio=-inf must be finite"),
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


def minimized(tx, loss, start, steps):
    """The last point of a run from all examples, and the losses on the way."""

    def step(carry, _):
        x, state = carry
        value, grad = jax.value_and_grad(loss)(x)
        updates, state = tx.update(grad, state, x, value=value)
        return (optax.apply_updates(x, updates), state), value

    carry = (start, tx.init(start))
    (x, _), values = jax.jit(lambda: jax.lax.scan(step, carry, length=steps))()
    return x, values


@pytest.mark.parametrize("least", [-1.0, -23.0, -23.05])
@pytest.mark.parametrize("num_steps", [100, None])
def test_a_loss_may_pass_through_zero(num_steps, least):
    """From 23.05 above its least value, with the curvatures .1 to 10."""
    curvatures = jnp.logspace(-1, 1, 20)

    def loss(x):
        return 0.5 * jnp.sum(curvatures * x**2) + least

    x, _ = minimized(tuning_free_nlcg(num_steps), loss, jnp.ones(20), 100)
    assert loss(x) < least + 1e-4


@pytest.mark.parametrize("num_steps", [150, None])
def test_a_loss_may_be_exponential_and_negative(num_steps):
    """A Poisson regression with counts up to 531, from all of 512 examples."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(512, 8)).astype(np.float32)
    counts = rng.poisson(np.exp(inputs @ rng.normal(size=8) * 0.7))
    counts = counts.astype(np.float32)

    def loss(x):
        logs = inputs @ x[:-1] + x[-1]
        return jnp.mean(jnp.exp(logs) - counts * logs)

    start = jnp.zeros(9)
    x, values = minimized(tuning_free_nlcg(num_steps), loss, start, 150)
    assert values[0] == 1
    assert jnp.max(values) == 1
    assert loss(x) < float(minimize(loss, start).fun) + 0.1


@pytest.mark.parametrize("num_steps", [300, None])
def test_a_bad_batch_of_ten_costs_little(num_steps):
    """Losses and gradients that are NaN in a tenth of the updates, by chance."""
    rng = np.random.default_rng(0)
    inputs = jnp.float32(rng.normal(size=(512, 8)))
    targets = jnp.sin(2 * inputs[:, 0]) + inputs[:, 1] * inputs[:, 2] / 2
    weights = rng.normal(size=(8, 32)) / 3, np.zeros((1, 32)), rng.normal(size=32) / 6
    start = jax.tree.map(jnp.float32, weights)
    tx = tuning_free_nlcg(num_steps)

    def loss(params, rows):
        hidden = jnp.tanh(inputs[rows] @ params[0] + params[1])
        return jnp.mean((hidden @ params[2] - targets[rows]) ** 2)

    def last(seed, share):
        def step(carry, key):
            params, state = carry
            drawn, rows = jax.random.split(key)
            rows = jax.random.choice(rows, 512, (64,), replace=False)
            bad = jnp.where(jax.random.uniform(drawn) < share, jnp.nan, 1.0)
            value, grads = jax.value_and_grad(lambda p: bad * loss(p, rows))(params)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(seed), 300)
        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), keys)
        return loss(params, jnp.arange(512))

    seeds, shares = jnp.arange(4), jnp.array([0.0, 0.1])
    of_both = jax.jit(jax.vmap(jax.vmap(last, (0, None)), (None, 0)))(seeds, shares)
    without, of_ten = jnp.mean(of_both, axis=1)
    assert of_ten < 2.5 * without


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


def test_a_direction_that_overflows_once_is_no_step_and_leaves_no_memory():
    def overflowing(grad, memory, params=None):
        memory = memory + grad
        return jnp.where(grad > 5, jnp.inf, memory), memory

    inner = optax.GradientTransformation(jnp.zeros_like, overflowing)
    tx = scale_by_slope_ratio(inner, 20)
    state = tx.init(jnp.ones(2))
    for grad in (1.0, 10.0, 1.0):
        before = state
        updates, state = tx.update(jnp.full(2, grad), state, value=3.0)
        if grad == 10.0:
            np.testing.assert_array_equal(updates, 0)
            np.testing.assert_array_equal(state.last_step, 0)
            np.testing.assert_array_equal(state.direction_state, before.direction_state)
    assert scalars(state)["num_not_finite"] == 1
    np.testing.assert_array_equal(state.direction_state, 2)
    assert jnp.all(jnp.isfinite(updates) & (updates > 0))
