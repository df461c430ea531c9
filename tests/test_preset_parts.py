"""Both presets for large batches are chains of public parts, with any argument."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import (
    damp_by_beta,
    large_batch_nlcg,
    scale_by_kronecker,
    scale_by_nlcg,
    scale_by_orthogonalization,
    scale_by_slope_ratio,
    tuning_free_nlcg,
)

# Each argument with a value that is not its default.
ARGUMENTS = {
    "none": {},
    "preconditioner": {"preconditioner": optax.scale_by_rms()},
    "scope": {"scope": "per_leaf"},
    "weight_decay": {"weight_decay": 0.1},
    "weight_decay_mask": {
        "weight_decay": 0.1,
        "weight_decay_mask": {"w": True, "b": False},
    },
    "weight_dimension_numbers": {"weight_dimension_numbers": {"w": None, "b": None}},
    "state_dtype": {"state_dtype": jnp.bfloat16},
    "num_steps": {"num_steps": 8},
}


def direction_of_presets(
    *,
    preconditioner=None,
    scope="global",
    weight_decay=None,
    weight_decay_mask=None,
    weight_dimension_numbers=None,
    state_dtype=None,
):
    numbers = {"weight_dimension_numbers": weight_dimension_numbers}
    memory = scale_by_nlcg(
        "pr+",
        preconditioner=preconditioner or scale_by_kronecker(**numbers),
        beta_smoothing=0.95,
        beta_max=0.95,
        restart=None,
        scope=scope,
        state_dtype=state_dtype,
    )
    is_vector = {"w": weight_dimension_numbers is not None, "b": True}
    parts = [
        damp_by_beta(memory, is_vector),
        scale_by_orthogonalization(vectors=optax.identity(), **numbers),
    ]
    if weight_decay is not None:
        parts.append(optax.add_decayed_weights(weight_decay, weight_decay_mask))
    return optax.chain(*parts)


def large_batch_parts(**kwargs):
    rate = optax.scale_by_learning_rate(0.1)
    return optax.chain(direction_of_presets(**kwargs), rate)


def tuning_free_parts(num_steps=None, **kwargs):
    step = scale_by_slope_ratio(direction_of_presets(**kwargs), num_steps)
    return optax.chain(step, optax.scale(-1.0))


PRESETS = {
    "large_batch": (functools.partial(large_batch_nlcg, 0.1), large_batch_parts),
    "tuning_free": (tuning_free_nlcg, tuning_free_parts),
}


@functools.cache
def updates_of(make, argument):
    """Updates for a matrix, a vector, and gradients of noise, in which PR+ has a β."""
    tx = optax.with_extra_args_support(make(**ARGUMENTS[argument]))
    params, rng = {"w": jnp.ones([3, 6]), "b": jnp.ones(6)}, np.random.default_rng(3)
    grads = jax.tree.map(lambda x: rng.normal(size=(6, *x.shape)), params)
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)

    def step(carry, given):
        params, state = carry
        grads, value = given
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), updates

    values = jnp.linspace(1.0, 0.5, 6)
    steps = jax.jit(lambda carry: jax.lax.scan(step, carry, (grads, values)))
    return steps((params, tx.init(params)))[1]


CASES = [
    (preset, argument)
    for preset in PRESETS
    for argument in ARGUMENTS
    if (preset, argument) != ("large_batch", "num_steps")
]


@pytest.mark.parametrize(("preset", "argument"), CASES)
def test_a_preset_is_the_chain_of_its_parts(preset, argument):
    make, parts = PRESETS[preset]
    found, expected = updates_of(make, argument), updates_of(parts, argument)
    size = max(np.abs(leaf).max() for leaf in found.values())
    # The same operations; XLA may still order a sum otherwise.
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6 * size)
    if argument != "none":
        default = "weight_decay" if argument == "weight_decay_mask" else "none"
        without = updates_of(make, default)
        change = max(np.abs(found[k] - without[k]).max() for k in found)
        # The least is that of bfloat16: 2⁻⁹ of what the memory adds to an update.
        assert change > 5e-4 * size
