"""Proves that Optax's wrappers compose with every form."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics, fill_masked, nlcg, paper_schedule, scale_by_nlcg
from nlcg_optax.direction.rules import RULES
from tests.contract.running import (
    DEAR,
    KEY,
    compiled_step,
    each_row,
    each_row_with_one,
    extra_args,
    make_step,
    small_loss,
    small_params,
)
from tests.contract.table import BY_NAME, RATE


@functools.cache
def _three_steps(name):
    """Parameters and state after each of three steps of the bare optimizer."""
    tx, step = compiled_step(name)
    carries = [(small_params(), tx.init(small_params()))]
    for _ in range(3):
        carries.append(step(*carries[-1]))
    return carries


# --- chain ---------------------------------------------------------------------------


def test_chain_feeds_the_clipped_gradient():
    tx = optax.chain(optax.clip_by_global_norm(0.5), nlcg(RATE))
    params = small_params()
    _, state = jax.jit(tx.update)(jax.grad(small_loss)(params), tx.init(params), params)
    np.testing.assert_allclose(diagnostics(state)["grad_norm"], 0.5, rtol=1e-6)


def test_chain_with_ema_and_decayed_weights_is_the_composition_by_hand():
    decay, smooth = 0.3, 0.5
    tx = optax.chain(
        scale_by_nlcg("pr+"),
        optax.ema(smooth, debias=False),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(RATE),
    )
    direction = scale_by_nlcg("pr+")
    params = small_params()
    state, inner = tx.init(params), direction.init(params)
    average = optax.tree.zeros_like(params)
    update, advance = jax.jit(tx.update), jax.jit(direction.update)
    for _ in range(3):
        grad = jax.grad(small_loss)(params)
        updates, state = update(grad, state, params)
        ascent, inner = advance(grad, inner, params)
        average = jax.tree.map(
            lambda m, u: smooth * m + (1 - smooth) * u, average, ascent
        )
        expected = jax.tree.map(lambda m, p: -RATE * (m + decay * p), average, params)
        # One rounding of float32 here and there.
        chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-6)
        params = optax.apply_updates(params, updates)


def test_weight_decay_is_decoupled_and_masked():
    params = small_params()
    grad = jax.grad(small_loss)(params)
    bare, decayed = (
        nlcg(RATE),
        nlcg(RATE, weight_decay=0.3, weight_decay_mask={"b": False, "w": True}),
    )
    without, _ = bare.update(grad, bare.init(params), params)
    updates, _ = decayed.update(grad, decayed.init(params), params)
    chex.assert_trees_all_close(updates["b"], without["b"], rtol=1e-6)
    chex.assert_trees_all_close(
        updates["w"], without["w"] - RATE * 0.3 * params["w"], rtol=1e-5
    )


# --- masked and partition ------------------------------------------------------------


def _loss_of_w(w_only):
    return small_loss({"b": small_params()["b"], **w_only})


# `partition` is made of `masked`, so that it alone runs them all.
@each_row_with_one("wrapper", ["partition", "masked"], names=KEY, fast=DEAR)
def test_masked_and_partition_solve_the_part(row, wrapper):
    """The numbers of the unmasked leaf are those of the problem in that leaf alone."""
    mask = {"b": False, "w": True}
    # Gradients in `extra_args` (the searches have one) must be masked alike.
    if wrapper == "masked":
        tx = optax.chain(
            optax.masked(row.make(), mask, mask_compatible_extra_args=True),
            optax.masked(optax.set_to_zero(), {"b": True, "w": False}),
        )
    else:
        tx = optax.partition(
            {"ours": row.make(), "frozen": optax.set_to_zero()},
            {"b": "frozen", "w": "ours"},
            mask_compatible_extra_args=True,
        )

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(small_loss)(params)
        # `value_fn` wants all parameters, the masked transformation has some.
        known = extra_args(row, value, grad, fill_masked(small_loss, params))
        updates, state = tx.update(grad, state, params, **known)
        return optax.apply_updates(params, updates), state

    alone = row.make()
    step_alone = jax.jit(make_step(row, alone, _loss_of_w))
    params = small_params()
    carry = (params, tx.init(params))
    own = ({"w": params["w"]}, alone.init({"w": params["w"]}))
    for _ in range(3):
        carry, own = step(*carry), step_alone(*own)
    chex.assert_trees_all_equal(carry[0]["b"], params["b"])
    chex.assert_trees_all_close(carry[0]["w"], own[0]["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        optax.tree.get(carry[1], "grad_norm"),
        optax.tree.get(own[1], "grad_norm"),
        rtol=1e-5,
    )


def test_partition_keeps_two_optimizers_apart():
    first, second = BY_NAME["pr+"].make(), BY_NAME["rms"].make()
    tx = optax.partition({"1": first, "2": second}, {"b": "1", "w": "2"})
    params = small_params()
    state = tx.init(params)
    states = first.init(params["b"]), second.init(params["w"])
    update, update_b, update_w = (jax.jit(t.update) for t in (tx, first, second))
    for _ in range(3):
        grad = jax.grad(small_loss)(params)
        updates, state = update(grad, state, params)
        b, state_b = update_b(grad["b"], states[0], params["b"])
        w, state_w = update_w(grad["w"], states[1], params["w"])
        states = state_b, state_w
        chex.assert_trees_all_close(updates, {"b": b, "w": w}, rtol=1e-6)
        params = optax.apply_updates(params, updates)


# --- apply_if_finite -----------------------------------------------------------------


@each_row(names=KEY, fast=DEAR)
def test_apply_if_finite_leaves_a_nan_out(row):
    tx = optax.apply_if_finite(row.make(), max_consecutive_errors=3)

    def step(params, state, spoil):
        value, grad = jax.value_and_grad(small_loss)(params)
        grad = jax.tree.map(lambda g: g * spoil, grad)
        known = extra_args(row, value, grad, small_loss)
        updates, state = tx.update(grad, state, params, **known)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step)
    params = small_params()
    carry = step(params, tx.init(params), 1.0)
    for _ in range(2):
        spoiled = step(*carry, jnp.nan)
        chex.assert_trees_all_equal(spoiled[0], carry[0])
        chex.assert_trees_all_equal(spoiled[1].inner_state, carry[1].inner_state)
        carry = spoiled
    assert carry[1].total_notfinite == 2
    carry = step(*step(*carry, 1.0), 1.0)
    # As if the spoiled steps had never been; another program, hence roundings.
    chex.assert_trees_all_close(
        carry[0], _three_steps(row.name)[3][0], rtol=1e-5, atol=1e-6
    )


# --- flatten -------------------------------------------------------------------------

# Flattening takes the matrices away from preconditioners that look at shapes, and
# other probes are drawn for other shapes.
SHAPED = dict.fromkeys(
    ("factored", "orthogonal", "kronecker", "hutchinson"), "reads the shapes"
)


@each_row(names=KEY, without=SHAPED, fast=DEAR)
def test_flatten_changes_no_number(row):
    tx = optax.flatten(row.make())
    _, unravel = jax.flatten_util.ravel_pytree(small_params())

    def flat_loss(vector):
        return small_loss(unravel(vector))

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(small_loss)(params)
        # `flatten` flattens the updates and the parameters but no extra argument:
        # whoever passes a loss or a gradient passes it for the flat vector.
        flat_grad, _ = jax.flatten_util.ravel_pytree(grad)
        known = extra_args(row, value, flat_grad, flat_loss)
        updates, state = tx.update(grad, state, params, **known)
        return optax.apply_updates(params, updates), state

    carry = (small_params(), tx.init(small_params()))
    for _ in range(3):
        carry = step(*carry)
    expected = _three_steps(row.name)[3][0]
    # Sums run in another order: roundings, carried through three steps.
    chex.assert_trees_all_close(carry[0], expected, rtol=2e-5, atol=2e-6)
    assert optax.tree.get(carry[1], "direction").shape == (8,)


# --- schedules and inject_hyperparams ------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        optax.exponential_decay(0.1, 1, 0.5),
        paper_schedule(0.1, steps_per_epoch=1, warmup_epochs=4, init_value=0.01),
    ],
    ids=["exponential", "paper"],
)
@pytest.mark.parametrize("injected", [False, True])
def test_schedules_scale_the_direction(schedule, injected):
    make = optax.inject_hyperparams(nlcg) if injected else nlcg
    # FR, whose beta is not zero here, with the default smoothing and cap.
    tx = make(schedule, "fr")
    direction = scale_by_nlcg("fr", beta_smoothing=0.9, beta_max=0.95)
    params = small_params()
    state, inner = tx.init(params), direction.init(params)
    update, advance = jax.jit(tx.update), jax.jit(direction.update)
    for t in range(3):
        grad = jax.grad(small_loss)(params)
        updates, state = update(grad, state, params)
        ascent, inner = advance(grad, inner, params)
        expected = jax.tree.map(lambda u, t=t: -float(schedule(t)) * u, ascent)
        chex.assert_trees_all_close(updates, expected, rtol=1e-5)
        params = optax.apply_updates(params, updates)
        if injected:
            np.testing.assert_allclose(
                state.hyperparams["learning_rate"], schedule(t), rtol=1e-6
            )
    assert diagnostics(state)["beta"] > 0


def test_injected_numbers_can_be_scheduled_and_overwritten():
    tx = optax.inject_hyperparams(nlcg)(
        RATE,
        rule=0.5,
        beta_max=optax.linear_schedule(0.4, 0.1, 3),
        beta_smoothing=0.0,
    )
    params = small_params()
    state = tx.init(params)
    update = jax.jit(tx.update)
    betas = []
    for t in range(4):
        if t == 3:
            state.hyperparams["rule"] = jnp.float32(0.05)
        updates, state = update(jax.grad(small_loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        betas.append(float(diagnostics(state)["beta"]))
    # No beta at first, then .5 clipped to the schedule, then the number put in.
    np.testing.assert_allclose(betas, [0.0, 0.3, 0.2, 0.05], rtol=1e-6)


def test_a_rule_is_injected_by_name():
    params, grads = small_params(), []
    first = jax.grad(small_loss)(params)
    grads = [first, jax.tree.map(lambda g: 0.3 * g + 0.1, first)]

    def beta(tx):
        state = tx.init(params)
        for grad in grads:
            _, state = tx.update(grad, state, params)
        return float(diagnostics(state)["beta"])

    bounds = {"beta_min": -float("inf"), "beta_max": float("inf")}
    seen = set()
    for name in ("fr", "pr", "hs", "cd", "dk"):
        plain = scale_by_nlcg(name, **bounds)
        by_callable = scale_by_nlcg(RULES[name], **bounds)
        injected = optax.inject_hyperparams(scale_by_nlcg)(name, **bounds)
        np.testing.assert_allclose(beta(injected), beta(plain), rtol=1e-6)
        np.testing.assert_allclose(beta(by_callable), beta(plain), rtol=1e-6)
        seen.add(round(beta(plain), 5))
    assert len(seen) >= 3  # the names do choose different rules


def test_diagnostics_come_out_of_nested_wrappers(standard_promotion):
    tx = optax.MultiSteps(
        optax.partition(
            {"x": optax.chain(optax.clip(1e9), nlcg(RATE)), "y": optax.sgd(RATE)},
            {"b": "y", "w": "x"},
        ),
        every_k_schedule=1,
    )
    params = small_params()
    grad = jax.grad(small_loss)(params)
    _, state = tx.update(grad, tx.init(params), params)
    np.testing.assert_allclose(
        diagnostics(state)["grad_norm"], jnp.linalg.norm(grad["w"]), rtol=1e-6
    )
