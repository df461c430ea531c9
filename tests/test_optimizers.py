"""`nlcg` and the presets: the chains that they are, schedule, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import (
    diagnostics,
    large_batch_nlcg,
    nlcg,
    paper_nlcg,
    scale_by_hager_zhang_linesearch,
    tuning_free_nlcg,
)
from nlcg_optax import scale_by_nlcg as direction
from nlcg_optax.paper import scale_by_loss_ratio


def rosenbrock(x):
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def assert_same_steps(tx, chain):
    params = jnp.array([0.5, -1.0, 2.0])
    states = [tx.init(params), chain.init(params)]
    for t in range(4):
        g = jnp.cos(params + t)
        updates, states[0] = tx.update(g, states[0], params, value=1.0 + t)
        expected, states[1] = chain.update(g, states[1], params, value=1.0 + t)
        np.testing.assert_array_equal(updates, expected)


def test_is_the_chain_that_its_docstring_names():
    mask = lambda p: jax.tree.map(lambda x: x.ndim > 0, p)
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    assert_same_steps(
        nlcg(
            schedule,
            "hs",
            preconditioner=optax.scale_by_rms(),
            beta_smoothing=0.5,
            beta_max=1.0,
            weight_decay=0.01,
            weight_decay_mask=mask,
            step_control=scale_by_loss_ratio("online"),
        ),
        optax.chain(
            direction(
                "hs",
                preconditioner=optax.scale_by_rms(),
                beta_min=0.0,
                beta_max=1.0,
                beta_smoothing=0.5,
            ),
            scale_by_loss_ratio("online"),
            optax.add_decayed_weights(0.01, mask),
            optax.scale_by_learning_rate(schedule),
        ),
    )


def trajectory(tx, steps=5):
    """Parameters after each step on a quadratic of two curvatures, and the betas."""
    loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 12.0]) * x**2)
    params, found, betas = jnp.array([3.0, -2.0]), [], []
    state = tx.init(params)
    update = jax.jit(
        lambda g, s, p, v: tx.update(g, s, p, value=v, grad=g, value_fn=loss)
    )
    for _ in range(steps):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = update(grad, state, params, value)
        params = optax.apply_updates(params, updates)
        found.append(params)
        betas.append(float(diagnostics(state)["beta"]))
    return np.stack(found), betas


def with_rate(tx):
    return optax.chain(tx, optax.scale_by_learning_rate(0.1))


def test_beta_is_averaged_and_capped_by_default():
    found, betas = trajectory(nlcg(0.1))
    explicit = direction("pr+", beta_smoothing=0.9, beta_max=0.95)
    expected, _ = trajectory(with_rate(explicit))
    np.testing.assert_array_equal(found, expected)
    assert max(betas) > 0  # so that the average is seen
    raw, _ = trajectory(with_rate(direction("pr+")))
    assert np.abs(found - raw).max() > 1e-3
    # A rule of 2 is capped, then averaged from zero; the first step restarts.
    _, betas = trajectory(nlcg(0.01, lambda p: 0.0 * p.g_z + 2.0), steps=4)
    expected = 0.95 * (1 - 0.9 ** np.arange(4))
    np.testing.assert_allclose(betas, expected, rtol=1e-6)


@pytest.mark.parametrize("rule", [0.97, jnp.float32(1.2)])
def test_a_number_as_the_rule_is_used_unmodified(rule):
    # There is no noise in it to be averaged out.
    _, betas = trajectory(nlcg(0.01, rule), steps=4)
    np.testing.assert_allclose(betas, [0.0, *[float(rule)] * 3], rtol=1e-6)


def test_the_clipping_of_the_paper_is_two_arguments():
    found, betas = trajectory(nlcg(0.1, beta_smoothing=0.0, beta_max=1.0))
    expected, _ = trajectory(with_rate(direction("pr+")))
    np.testing.assert_array_equal(found, expected)
    assert max(betas) > 0


@pytest.mark.parametrize(
    ("rule", "beta_min"), [("pr+", 0.0), ("hz", -jnp.inf), (0.9, -jnp.inf)]
)
def test_with_a_line_search_beta_is_used_unmodified(rule, beta_min):
    search = scale_by_hager_zhang_linesearch(max_slope_ratio=0.1)
    explicit = direction(rule, beta_min=beta_min, beta_max=jnp.inf)
    found, betas = trajectory(nlcg(rule=rule))
    expected, _ = trajectory(optax.chain(explicit, optax.scale(-1.0), search))
    np.testing.assert_array_equal(found, expected)
    assert max(betas) > 0


def test_either_default_of_beta_is_replaced_alone():
    for given in ({"beta_smoothing": 0.0}, {"beta_max": 1.0}):
        explicit = {"beta_smoothing": 0.9, "beta_max": 0.95} | given
        found, _ = trajectory(nlcg(0.05, "fr", **given))
        expected, _ = trajectory(nlcg(0.05, "fr", **explicit))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rule", ["fr", "pr+", "hs+", "dy", "hz", "dk", "hs-dy"])
def test_line_search_form_minimizes_rosenbrock(x64, rule):
    solver = nlcg(rule=rule)
    if rule in ("fr", "hs-dy"):  # slow without restarts (Powell, 1977)
        solver = optax.chain(
            direction(rule, beta_max=jnp.inf, restart="powell"),
            optax.scale(-1.0),
            scale_by_hager_zhang_linesearch(max_slope_ratio=0.1),
        )
    value_and_grad = optax.value_and_grad_from_state(rosenbrock)

    def step(_, carry):
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(
            grad, state, params, value=value, grad=grad, value_fn=rosenbrock
        )
        return optax.apply_updates(params, updates), state

    params = jnp.array([-1.2, 1.0])
    solve = jax.jit(lambda c: jax.lax.fori_loop(0, 100, step, c))
    params, _ = solve((params, solver.init(params)))
    np.testing.assert_allclose(params, 1.0, atol=1e-5)


# --- the presets for large batches ---------------------------------------------------

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 40)), jnp.float32)
TARGETS = jnp.asarray(np.random.default_rng(1).normal(size=(3, 40)), jnp.float32)


def outputs_fn(w):
    return w @ INPUTS


def output_loss_fn(outputs):
    return jnp.mean((outputs - TARGETS) ** 2)


def loss(w):
    return output_loss_fn(outputs_fn(w))


def run(tx, steps=4, scale=1.0):
    w = jnp.zeros([3, 6])
    tx = optax.with_extra_args_support(tx)

    def step(carry, _):
        w, state = carry
        value, grads = jax.value_and_grad(lambda w: scale * loss(w))(w)
        updates, state = tx.update(grads, state, w, value=value)
        return (optax.apply_updates(w, updates), state), value

    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0])((w, tx.init(w)))


def test_vectors_are_damped_by_one_minus_a_beta_that_ramps_up_from_zero():
    tx = large_batch_nlcg(1.0, preconditioner=optax.identity())
    grads = np.random.default_rng(2).normal(size=(6, 5))
    grads += 2 * np.sign(grads[0])  # so that consecutive ones are alike
    grads[4] = -0.01 * grads[3]  # its batch is uphill, which clears no memory
    state, memory, average = tx.init(jnp.zeros(5)), np.zeros(5), 0.0
    averages, ascents = [], []
    for t, g in enumerate(grads):
        update, state = tx.update(jnp.asarray(g, jnp.float32), state)
        last = grads[t - 1]
        beta = np.clip(g @ (g - last) / (last @ last), 0, 0.95) if t else 0.0
        average = 0.95 * average + 0.05 * beta
        memory = g + average * memory
        averages.append(average)
        ascents.append(bool(memory @ g < 0))
        # Sums of five terms in float32.
        np.testing.assert_allclose(update, -(1 - average) * memory, rtol=1e-5)
    assert averages[0] == 0 < averages[-1] < 0.25
    assert ascents == [False, False, False, False, True, False]


@pytest.mark.parametrize("num_steps", [None, 60])
def test_tuning_free_does_not_depend_on_the_scale_of_the_loss(num_steps):
    w, state = run(tuning_free_nlcg(num_steps), steps=6)
    assert diagnostics(state)["slope_step_size"] > 0
    other, _ = run(tuning_free_nlcg(num_steps), steps=6, scale=256.0)
    # Powers of two commute with rounding, but for the 1e-8 in Adam's denominator.
    np.testing.assert_allclose(other, w, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_steps", [None, 60])
def test_tuning_free_solves_least_squares(num_steps):
    w, _ = run(tuning_free_nlcg(num_steps), steps=60)
    best = np.linalg.lstsq(np.asarray(INPUTS).T, np.asarray(TARGETS).T, rcond=None)[0].T
    # Of the excess over the least loss, one part in a hundred at most is left.
    least = float(loss(jnp.asarray(best)))
    assert loss(w) - least < 1e-2 * (loss(jnp.zeros([3, 6])) - least)


# --- bad input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nlcg(0.1, "nope"), ValueError, "rule='nope' is unknown"),
        (lambda: nlcg(0.1, linesearch=3), TypeError, "linesearch=3 is a int"),
        (lambda: nlcg(0.1, step_control="step"), TypeError, "step_control='step' is a"),
        (
            lambda: nlcg(weight_decay=0.1),
            ValueError,
            "weight_decay=0.1 cannot be combined",
        ),
        (lambda: nlcg(0.1, weight_decay=-1.0), ValueError, "weight_decay=-1.0 must be"),
        (
            lambda: large_batch_nlcg(
                0.1, weight_decay=optax.linear_schedule(0.1, 0, 9)
            ),
            TypeError,
            "weight_decay=.* is a function; allowed is a real number",
        ),
        (
            lambda: nlcg(0.1, beta_max="1"),
            TypeError,
            "beta_max='1' is a str; allowed is a real number",
        ),
        (lambda: nlcg(float("nan")), ValueError, "learning_rate=nan must be finite"),
        (lambda: nlcg(-0.1), ValueError, "learning_rate=-0.1 must be .* not below 0"),
        (
            lambda: nlcg(np.array([0.1, 0.2])),
            TypeError,
            "learning_rate=.* is a ndarray; allowed are a number and a schedule",
        ),
        (
            lambda: paper_nlcg(0.1, layerwise_eta=-1.0),
            ValueError,
            "layerwise_eta=-1.0 must be finite and greater than 0",
        ),
        (
            lambda: paper_nlcg(0.1, "hs"),
            ValueError,
            "rule='hs' is unknown; allowed are",
        ),
        (
            lambda: paper_nlcg(0.1, step_control="wolfe"),
            ValueError,
            "step_control='wolfe' is unknown",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_missing_loss_is_named():
    tx = paper_nlcg(0.1)
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="update needs `value`"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("beta_max", [-1.0, float("nan")])
def test_an_upper_bound_of_beta_below_the_lower_one_is_named(beta_max):
    with pytest.raises(ValueError, match=f"beta_max={beta_max} must be at least 0"):
        nlcg(0.1, beta_max=beta_max)


def test_without_a_line_search_beta_may_be_unbounded_above():
    rule = lambda _: jnp.float32(1.5)
    tx = nlcg(0.05, rule, beta_smoothing=0.0, beta_max=jnp.inf)
    _, betas = trajectory(tx, steps=2)
    assert betas == [0.0, 1.5]
