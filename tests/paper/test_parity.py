"""`paper_nlcg` agrees with an independent NumPy float64 replica of the paper's system.

The tolerance: a relative perturbation of 1e-13 of the start grows at most 55-fold over
the 50 steps of the main grid, and 2800-fold with the extra options, so 1e-9 leaves
room for another order of summation and none for another equation.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nlcg_optax
from tests.paper.paper_replica import PaperConfig, PaperReplica, noisy_problem

SEED = 9
STEPS = 50


def learning_rate_for(bfgs, layerwise):
    base = {
        (False, False): 1.0,
        (True, False): 0.3,
        (False, True): 60.0,
        (True, True): 1.0,
    }[bfgs, layerwise]
    # Not constant, so that the learning rate of another step would show.
    return lambda t: base / (1 + 0.02 * jnp.asarray(t, float))


def run_replica(config):
    params, problem = noisy_problem(SEED)
    replica = PaperReplica(config, params)
    trajectory = []
    for t in range(STEPS):
        loss, grads = problem(t, replica.params)
        trajectory.append(np.concatenate([p.ravel() for p in replica.params]))
        replica.step(grads, loss)
    return np.array(trajectory), replica.history


def run_package(tx):
    params, problem = noisy_problem(SEED)
    params = [jnp.asarray(p) for p in params]
    state = tx.init(params)

    @jax.jit
    def step(grads, state, params, loss):
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    trajectory, history = [], []
    for t in range(STEPS):
        loss, grads = problem(t, [np.asarray(p) for p in params])
        trajectory.append(np.concatenate([np.ravel(p) for p in params]))
        params, state = step(grads, state, params, loss)
        history.append({k: float(v) for k, v in nlcg_optax.diagnostics(state).items()})
    return np.array(trajectory), history


def assert_same(tx, config):
    expected, expected_history = run_replica(config)
    actual, history = run_package(tx)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * scale)
    betas = [entry["beta"] for entry in expected_history]
    np.testing.assert_allclose([h["beta"] for h in history], betas, rtol=0, atol=1e-9)
    if config.controller is not None:
        expected_b = [entry["b"] for entry in expected_history]
        actual_b = [h["step_multiplier"] for h in history]
        np.testing.assert_allclose(actual_b, expected_b, rtol=1e-9)
    if config.bfgs:
        taken = sum(entry["skipped"] is False for entry in expected_history)
        assert history[-1]["num_secants"] == taken
        assert 0 < taken < STEPS - 1  # both updates and skips happen


@pytest.mark.parametrize(
    ("rule", "bfgs", "controller", "layerwise"),
    list(
        itertools.product(
            ["fr", "pr"], [False, True], [None, "online", "step"], [False, True]
        )
    ),
)
def test_preset_follows_the_replica(x64, rule, bfgs, controller, layerwise):
    schedule = learning_rate_for(bfgs, layerwise)
    tx = nlcg_optax.paper_nlcg(
        schedule,
        rule,
        diagonal_bfgs=bfgs,
        step_control=controller,
        layerwise_eta=0.001 if layerwise else None,
    )
    config = PaperConfig(
        rule, bfgs, controller, layerwise, schedule, None, None, bfgs_spectral=False
    )
    assert_same(tx, config)


def test_multiplier_floor_and_threshold(x64):
    schedule = learning_rate_for(bfgs=False, layerwise=False)
    tx = nlcg_optax.paper_nlcg(
        schedule, diagonal_bfgs=False, step_control="online", threshold=0.1
    )
    config = PaperConfig(
        "fr", False, "online", False, schedule, None, None, False, threshold=0.1
    )
    _, history = run_replica(config)
    assert min(entry["b"] for entry in history) == 1e-4
    assert_same(tx, config)


def test_period_and_fletcher_reeves_restart(x64):
    schedule = learning_rate_for(bfgs=True, layerwise=False)
    tx = nlcg_optax.paper_nlcg(schedule, period=3, threshold=0.05, restart_period=7)
    config = PaperConfig(
        "fr", True, "step", False, schedule, 7, None, False, period=3, threshold=0.05
    )
    assert_same(tx, config)


@pytest.mark.parametrize(
    ("reset_period", "spectral"), [(6, False), (None, True), (6, True)]
)
def test_reset_and_spectral_scaling(x64, reset_period, spectral):
    schedule = learning_rate_for(bfgs=True, layerwise=False)
    tx = nlcg_optax.paper_nlcg(
        schedule,
        "pr",
        step_control="online",
        reset_period=reset_period,
        spectral_scaling=spectral,
    )
    config = PaperConfig(
        "pr", True, "online", False, schedule, None, reset_period, spectral
    )
    assert_same(tx, config)


@pytest.mark.parametrize("option", [{"reset_period": 6}, {"spectral_scaling": True}])
def test_options_of_diagonal_bfgs_are_refused_without_it(option):
    with pytest.raises(ValueError, match="must be None and False with diagonal_bfgs"):
        nlcg_optax.paper_nlcg(0.1, diagonal_bfgs=False, **option)


def test_every_row_of_the_controller_table_is_reached():
    for controller in ("online", "step"):
        rows = set()
        for rule, bfgs, layerwise in itertools.product(
            ["fr", "pr"], [False, True], [False, True]
        ):
            schedule = learning_rate_for(bfgs, layerwise)
            config = PaperConfig(
                rule, bfgs, controller, layerwise, schedule, None, None, False
            )
            _, history = run_replica(config)
            ratios = [h["ratio"] for h in history if h["ratio"] is not None]
            margins = [row[0] for row in nlcg_optax.paper.loss_ratio.RATIO_TABLE]
            rows |= {sum(r > 1 + m for m in margins) for r in ratios}
        assert rows == set(range(8))


def test_a_schedule_in_float64_needs_no_implicit_promotion(x64):
    schedule = nlcg_optax.paper_schedule(jnp.float32(0.8), 4, init_value=0.4)
    tx = nlcg_optax.paper_nlcg(schedule)
    params = jnp.ones(2, jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = tx.update(params, tx.init(params), params, value=jnp.float32(1.0))
    np.testing.assert_allclose(updates, -0.4, rtol=1e-6)
