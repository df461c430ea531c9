"""What may be a method of `minimize`, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import minimize
from nlcg_optax.minimization.methods import limited_memory_method, nlcg_method


def parabola(x):
    return jnp.sum((x - 1.0) ** 2)


@pytest.mark.parametrize(
    "direction",
    [
        optax.add_noise(1e-6, 0.55, jax.random.key(0)),
        optax.GradientTransformation(lambda _: 0, lambda u, s, _=None: (u, s)),
    ],
    ids=["a random key", "a Python number"],
)
def test_the_state_of_a_direction_may_hold(direction, standard_promotion):
    result = minimize(parabola, jnp.zeros(2), method=direction)
    # A unit of rounding of the objective's fall, or the noise of 1e-6, as a distance.
    np.testing.assert_allclose(result.x, 1.0, atol=1e-3)


@pytest.mark.parametrize("make", [nlcg_method, lambda b: limited_memory_method(5, b)])
def test_a_traced_rule_is_refused(make):
    def least(beta):
        return minimize(parabola, jnp.zeros(3), method=make(beta)).fun

    for transform in (jax.vmap, jax.jit):
        with pytest.raises(TypeError, match="rule=.* is traced"):
            transform(least)(jnp.array([0.1, 0.5]))
