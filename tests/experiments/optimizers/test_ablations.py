"""The presets with nothing exchanged are the presets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import optimizers

STEPS = 60


def followed(name, learning_rate, options):
    """The parameters after steps on gradients of which some are uphill."""
    tx = optimizers.build(name, learning_rate, options).transformation
    tx = optax.with_extra_args_support(tx)
    params = {"w": jnp.ones([3, 4]), "b": jnp.zeros(4)}
    keys = jax.random.split(jax.random.key(0), STEPS)

    def step(carry, key):
        params, state = carry
        noise = jax.random.normal(key, (3, 4))
        noise *= 10.0 ** jax.random.uniform(key, minval=-2, maxval=1)
        grads = {"w": params["w"] + noise, "b": params["b"] + noise[0]}
        value = 100 + jnp.sum(params["w"] ** 2) / 2 + jnp.sum(noise * params["w"])
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda c: jax.lax.scan(step, c, keys)[0])
    return run((params, tx.init(params)))[0]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("ablated", "preset", "learning_rate", "options"),
    [
        ("ordered_nlcg", "large_batch_nlcg", 0.1, {}),
        ("slope_ratio", "tuning_free_nlcg", 1.0, {"num_steps": STEPS}),
        ("slope_ratio", "tuning_free_nlcg", 1.0, {}),
    ],
)
def test_nothing_exchanged(ablated, preset, learning_rate, options):
    found = followed(ablated, learning_rate, options)
    expected = followed(preset, learning_rate, options)
    # XLA orders the sums of two programs as it likes.
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
