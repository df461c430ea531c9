"""`scale_by_slope_ratio` composed: clipping, decay, schedules, virtual batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import scale_by_nlcg, scale_by_slope_ratio
from tests.step_size.told_losses import scalars, told

F32 = np.float32


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


@pytest.mark.parametrize("target", [-0.4, -0.2])
@pytest.mark.parametrize("num_steps", [None, 1000])
def test_a_factor_after_it_is_made_up_for_until_the_step_is_held(num_steps, target):
    # f = 2 x^2 + 100: r = 1 - 4 t at steps of t times the gradient, whatever
    # multiplies them; the first is .001, and each is at most e^2.3 times the last.
    for factor in (1.0, 0.125):
        tx = scale_by_slope_ratio(optax.identity(), num_steps, target_ratio=target)
        state, x = tx.init(jnp.zeros(1)), 1.0
        for _ in range(5):
            value, grad = F32(2 * x**2 + 100), jnp.array([4 * x], F32)
            update, state = tx.update(grad, state, value=value)
            x -= factor * float(update[0])
        found = scalars(state)["slope_step_size"]
        # 2e-3 of annealing over five steps, and float32 losses of 100.
        np.testing.assert_allclose(factor * found, (1 - target) / 4, rtol=1e-2)


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
