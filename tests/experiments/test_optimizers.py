import jax
import jax.numpy as jnp
import optax
import pytest

from experiments import optimizers, schedules


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_updates_with_just_its_extras(name):
    optimizer = optimizers.build(name, 0.05)
    tx = optax.with_extra_args_support(optimizer.transformation)

    def update(params):
        extras = {"value": jnp.sum(params**2), "value_fn": lambda x: jnp.sum(x**2)}
        given = {extra: extras[extra] for extra in optimizer.extras}
        return tx.update(2 * params, tx.init(params), params, **given)

    params = jnp.ones([2], jnp.float32)
    updates, _ = jax.eval_shape(update, params)
    assert updates.shape == params.shape
    assert updates.dtype == params.dtype


@pytest.mark.parametrize(
    ("name", "options", "cost"),
    [
        ("sgd", {}, 1.0),
        ("adam", {"b1": 0.8}, 1.0),
        ("nlcg_pr+_rms", {"beta_smoothing": 0.9}, 1.0),
        ("nlcg_fr_secant", {}, 1.4),
        ("nlcg_hs_secant", {"refresh_period": 1}, 3.0),
        ("paper_nlcg_fr", {}, 1.0),
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
