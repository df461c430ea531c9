import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import optimizers
from experiments.config import RunConfig
from experiments.optimizers import OPTIMIZERS
from experiments.tuning import spaces as search_spaces
from experiments.tuning.spaces import ROLES, SEARCH_SPACES, Dimension, with_values


def test_every_optimizer_has_a_space():
    assert set(SEARCH_SPACES) == set(OPTIMIZERS)
    with pytest.raises(ValueError, match="optimizer='lion' is unknown; allowed are"):
        search_spaces.search_space("lion")


@pytest.mark.parametrize("name", SEARCH_SPACES)
def test_every_corner_of_a_space_is_allowed(name):
    space = SEARCH_SPACES[name]
    assert list(space.dimensions) == [r for r in ROLES if r in space.dimensions]
    for place in (0.0, 1.0):
        values = {d.name: d.at(place) for d in space.dimensions.values()}
        config = RunConfig(optimizer=name, optimizer_options=dict(space.options))
        config = with_values(config, values)
        optimizers.build(name, config.learning_rate, config.optimizer_options)


@pytest.mark.parametrize(
    "name",
    [
        *("nesterov", "rmsprop", "adamw", "lars", "lamb", "muon", "shampoo"),
        "paper_nlcg_fr",
        "nlcg_constant",
        "nlcg_pr+_rms",
        "nlcg_pr+_orthogonal",
    ],
)
def test_what_is_searched_may_be_traced(name):
    """So that trials share a program; numbers in arrays give the same step as plain."""
    space = SEARCH_SPACES[name]
    options = dict(space.options)
    for dimension in space.dimensions.values():
        if dimension.name not in ("learning_rate", "l2", "warmup_fraction"):
            options[dimension.name] = dimension.at(0.5)
    params = {"Dense_0": {"kernel": jnp.eye(3) + 0.1, "bias": jnp.ones([3])}}

    def step(options):
        optimizer = optimizers.build(name, 0.1, options)
        grads = jax.tree.map(jnp.sin, params)
        state = optimizer.transformation.init(params)
        updates, _ = optax.with_extra_args_support(optimizer.transformation).update(
            grads, state, params, **dict.fromkeys(optimizer.extras, jnp.float32(1))
        )
        return updates

    traced = jax.jit(step)(options)
    for mine, plain in zip(jax.tree.leaves(traced), jax.tree.leaves(step(options))):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)


def test_scales():
    places = np.array([0.0, 0.5, 1.0])
    for scale, expected in (
        ("log", [0.01, 0.1, 1.0]),
        ("linear", [0.01, 0.505, 1.0]),
    ):
        dimension = Dimension("x", 0.01, 1.0, scale)
        np.testing.assert_allclose([dimension.at(p) for p in places], expected)
    momentum = Dimension("momentum", 0.9, 0.999, "one_minus")
    np.testing.assert_allclose([momentum.at(p) for p in places], [0.9, 0.99, 0.999])


def test_values_find_their_place():
    config = RunConfig(epochs=8, l2=1e-4, optimizer_options={"b2": 0.9})
    values = {"learning_rate": 0.2, "warmup_fraction": 0.25, "b1": 0.8}
    found = with_values(config, values)
    assert (found.learning_rate, found.warmup_epochs, found.l2) == (0.2, 2.0, 1e-4)
    assert found.optimizer_options == {"b2": 0.9, "b1": 0.8}
    assert with_values(config, {"weight_decay": 0.1}).l2 == 0.0
    assert with_values(config, {"l2": 0.1}).l2 == 0.1
