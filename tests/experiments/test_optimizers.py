import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nlcg_optax
from experiments import optimizers, schedules


def square(params):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


def marked(name):
    """One rule of NLCG stands for all in the fast suite."""
    slow = name.startswith("nlcg_") and not name.startswith("nlcg_pr+")
    whole = name.count("_") == 1  # a rule without a preconditioner
    return pytest.param(name, marks=pytest.mark.slow) if slow and not whole else name


@pytest.mark.parametrize("name", [marked(name) for name in optimizers.OPTIMIZERS])
def test_every_optimizer_updates_with_just_its_extras(name):
    optimizer = optimizers.build(name, 0.05)
    tx = optax.with_extra_args_support(optimizer.transformation)

    def update(params):
        grads = jax.grad(square)(params)
        extras = {
            "value": square(params),
            "value_fn": square,
            "outputs_fn": lambda params: square(params)[None],
            "output_loss_fn": jnp.sum,
            "half_grads": (grads, grads),
        }
        given = {extra: extras[extra] for extra in optimizer.extras}
        return tx.update(grads, tx.init(params), params, **given)

    params = {
        "Conv_0": {"kernel": jnp.ones([3, 3, 2, 4])},
        "BatchNorm_0": {"scale": jnp.ones([4])},
        "Dense_0": {"kernel": jnp.ones([4, 5]), "bias": jnp.ones([5])},
    }
    updates, _ = jax.eval_shape(update, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


def test_the_papers_rmsprop():
    tx = optimizers.build("rmsprop", 0.1).transformation
    params, grad = jnp.array([1.0, 2.0]), jnp.array([3.0, -0.5])
    state, square_mean, momentum = tx.init(params), np.ones(2), np.zeros(2)
    for _ in range(3):
        updates, state = tx.update(grad, state, params)
        square_mean = 0.9 * square_mean + 0.1 * grad**2
        momentum = 0.9 * momentum + 0.1 * grad / np.sqrt(square_mean + 1)
        np.testing.assert_allclose(updates, -momentum, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lars", "lamb", "muon", "nlcg_pr+_rms"])
def test_batch_normalisation_does_not_decay(name):
    # Neither one along the other, so that no trust ratio undoes the decay.
    params = {"BatchNorm_0": jnp.ones([3]), "Dense_0": 1.0 + jnp.eye(3)}
    grads = {"BatchNorm_0": jnp.ones([3]), "Dense_0": 0.1 * jnp.ones([3, 3])}
    steps = {}
    for decay in (0.0, 0.5):
        tx = optimizers.build(name, 0.05, {"weight_decay": decay}).transformation
        steps[decay], _ = jax.jit(tx.update)(grads, tx.init(params), params)
    chex.assert_trees_all_equal(steps[0.0]["BatchNorm_0"], steps[0.5]["BatchNorm_0"])
    assert (steps[0.0]["Dense_0"] != steps[0.5]["Dense_0"]).any()


def test_a_constant_and_a_replayed_beta_are_the_same_numbers():
    params = jnp.array([1.0, 2.0])
    runs = []
    for name, options in (
        ("nlcg_constant_rms", {"beta": 0.5}),
        ("nlcg_replay_rms", {"betas": [0.5] * 3}),
    ):
        tx = optimizers.build(name, 0.1, options).transformation
        state, out = tx.init(params), []
        for scale in (1.0, 0.7, 0.4):
            updates, state = tx.update(scale * params, state, params)
            out.append(updates)
        runs.append(out)
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-6)


def updates_of(tx, extras, activation, steps=5):
    """What an optimiser makes of the same losses on a matrix and a vector."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=[8, 3]))
    params = {"w": jnp.ones([3, 2]), "b": jnp.zeros([2])}
    state, out = tx.init(params), []
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    def step(params, state):
        def outputs(params):
            return activation(inputs @ params["w"] + params["b"])

        def loss(outputs):
            return jnp.mean(jnp.square(outputs - 0.3))

        value, grads = jax.value_and_grad(lambda p: loss(outputs(p)))(params)
        given = {"value": value, "outputs_fn": outputs, "output_loss_fn": loss}
        given = {name: given[name] for name in extras}
        updates, state = tx.update(grads, state, params, **given)
        return updates, optax.apply_updates(params, updates), state

    for _ in range(steps):
        updates, params, state = step(params, state)
        out.append(updates)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "preset", "learning_rate"),
    [
        ({}, nlcg_optax.large_batch_nlcg, 0.05),
        ({"curvature_period": 1}, nlcg_optax.tuning_free_nlcg, 0.5),
    ],
)
def test_the_registry_has_the_recommended_presets(options, preset, learning_rate):
    options = {"beta_smoothing": 0.9, "beta_max": 0.95, **options}
    named = optimizers.build("nlcg_pr+_kronecker", learning_rate, options)
    found = updates_of(named.transformation, named.extras, jnp.tanh)
    expected = updates_of(preset(learning_rate), named.extras, jnp.tanh)
    # The same program but for a decay of zero.
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    other = optimizers.build(
        "nlcg_pr+_kronecker", learning_rate, options | {"beta_max": 0.01}
    )
    other = updates_of(other.transformation, named.extras, jnp.tanh)
    assert np.abs(other[-1]["w"] - expected[-1]["w"]).max() > 1e-4


@pytest.mark.parametrize("option", [{"reset_period": 2}, {"spectral_scaling": 1}])
def test_the_options_that_the_paper_switched_off(option):
    named = optimizers.build("paper_nlcg_fr", 0.1, option)
    found = updates_of(named.transformation, named.extras, jnp.positive)
    expected = updates_of(
        nlcg_optax.paper_nlcg(0.1, **option), named.extras, jnp.positive
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    plain = updates_of(nlcg_optax.paper_nlcg(0.1), named.extras, jnp.positive)
    assert np.abs(found[-1]["w"] - plain[-1]["w"]).max() > 1e-4


def test_options_are_those_of_rule_and_preconditioner():
    with pytest.raises(ValueError, match="beta=0.5, which 'nlcg_fr_rms' does not take"):
        optimizers.build("nlcg_fr_rms", 0.1, {"beta": 0.5})
    with pytest.raises(ValueError, match="refresh_period=3, which 'nlcg_fr_rms'"):
        optimizers.build("nlcg_fr_rms", 0.1, {"refresh_period": 3})


@pytest.mark.parametrize(
    ("name", "options", "cost"),
    [
        ("sgd", {}, 1.0),
        ("adam", {"b1": 0.8}, 1.0),
        ("nlcg_pr+_rms", {"beta_smoothing": 0.9}, 1.0),
        ("nlcg_fr_secant", {}, 1.4),
        ("nlcg_hs_secant", {"refresh_period": 1}, 3.0),
        ("paper_nlcg_fr", {}, 1.0),
        ("nlcg_daniel", {}, 3.0),
        ("nlcg_pr+_kronecker", {"curvature_period": 2}, 4 / 3),
        ("nlcg_subspace_orthogonal", {}, 8 / 3),
    ],
)
def test_the_cost_of_a_step_in_gradients(name, options, cost):
    built = optimizers.build(name, 0.1, options)
    assert built.gradient_equivalents == pytest.approx(cost)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Steps 0, 4, 8, 16 and 32 of 40; the paper's warm-up takes 5 of them and its
        # decays come at 20.4 and 30.6.
        ("constant", [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("cosine", [2.0, 1.951057, 1.809017, 1.309017, 0.190983]),
        ("paper", [0.0, 2 * (1 - 0.2**0.5), 2.0, 2.0, 0.02]),
    ],
)
def test_schedules(name, expected):
    schedule = schedules.build(name, 2.0, 40)
    values = [float(schedule(step)) for step in (0, 4, 8, 16, 32)]
    assert values == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Ten of 40 steps rise, from .2 to 2; step 25 is half of what is left.
        ("constant", [0.2, 2.0, 2.0, 2.0, 2.0]),
        ("cosine", [0.2, 2.0, 2.0, 1.0, 0.0]),
        ("linear", [0.2, 2.0, 2.0, 1.0, 0.0]),
        ("paper", [0.0, 2 * (1 - 0.1**0.5), 2.0, 0.2, 0.02]),
    ],
)
def test_schedules_with_a_warm_up(name, expected):
    schedule = schedules.build(name, 2.0, 40, 0.25)
    values = [float(schedule(step)) for step in (0, 9, 10, 25, 40)]
    assert values == pytest.approx(expected, rel=1e-5, abs=1e-6)
