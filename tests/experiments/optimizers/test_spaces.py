import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import optimizers
from experiments.optimizers import Dimension, preconditioners
from experiments.optimizers.spaces import ROLES

OF_THE_RUN = ("learning_rate", "l2", "warmup_fraction")


CASES = [
    *((name, {}) for name in optimizers.OPTIMIZERS),
    *(("nlcg", {"preconditioner": name}) for name in preconditioners.PRECONDITIONERS),
    ("nlcg", {"rule": "constant"}),
    ("nlcg", {"step": "curvature"}),
    ("paper_nlcg", {"step_control": "none"}),
]


def values_of(name, options, place):
    """The options at a place in the search space, and the names of its dimensions."""
    space = optimizers.search_space(name, options)
    searched = {d.name: d.at(place) for d in space.dimensions.values()}
    own = {n: v for n, v in searched.items() if n not in OF_THE_RUN}
    return {**space.options, **options, **own}, searched


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_corner_of_a_space_is_allowed(name, options):
    dimensions = optimizers.search_space(name, options).dimensions
    assert list(dimensions) == [role for role in ROLES if role in dimensions]
    for place in (0.0, 1.0):
        found, searched = values_of(name, options, place)
        optimizers.build(name, searched["learning_rate"], found)


def test_a_space_of_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="optimizer='lion' is unknown; allowed are"):
        optimizers.search_space("lion")
    with pytest.raises(ValueError, match="momentum=0.9, which 'adam' does not take"):
        optimizers.search_space("adam", {"momentum": 0.9})


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        *((name, {}) for name in ("nesterov", "rmsprop", "adamw", "lars", "lamb")),
        *((name, {}) for name in ("muon", "shampoo", "paper_nlcg")),
        ("nlcg", {"rule": "constant"}),
        ("nlcg", {"preconditioner": "rms"}),
        ("nlcg", {"preconditioner": "orthogonal"}),
    ],
)
def test_what_is_searched_may_be_traced(name, kinds):
    """So that trials share a program; numbers in arrays give the same step as plain."""
    options, _ = values_of(name, kinds, 0.5)
    floats = {n: value for n, value in options.items() if isinstance(value, float)}
    params = {"Dense_0": {"kernel": jnp.eye(3) + 0.1, "bias": jnp.ones([3])}}

    def step(floats):
        optimizer = optimizers.build(name, 0.1, options | floats)
        grads = jax.tree.map(jnp.sin, params)
        state = optimizer.transformation.init(params)
        updates, _ = optax.with_extra_args_support(optimizer.transformation).update(
            grads, state, params, **dict.fromkeys(optimizer.extras, jnp.float32(1))
        )
        return updates

    traced = jax.jit(step)(floats)
    for mine, plain in zip(jax.tree.leaves(traced), jax.tree.leaves(step(floats))):
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
