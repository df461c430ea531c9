"""What may be a method of `minimize`, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import minimize, scale_by_hager_zhang_linesearch
from nlcg_optax.linesearch.wolfe_search import WolfeRules
from nlcg_optax.minimization.methods import (
    Method,
    get_method,
    limited_memory_method,
    nlcg_method,
)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sufficient_decrease", 0.5),
        ("max_slope_ratio", 1.0),
        ("shrinkage", 1.0),
        ("expansion", np.nan),
        ("contraction", 0.0),
        ("non_finite_contraction", 2.0),
        ("max_extrapolation", 1.0),
        ("max_quadratic_step", 0.0),
        ("max_evaluations", 1),
        ("max_evaluations", 2.5),
    ],
)
def test_rules_out_of_their_range_are_refused(name, value):
    rules = WolfeRules(**{name: value})
    with pytest.raises(ValueError, match=f"{name}={value}"):
        get_method(Method(optax.identity(), rules))


def test_a_search_needs_a_point_after_the_quadratic_step():
    for quadratic_step in (True, "adaptive"):
        with pytest.raises(ValueError, match="max_evaluations=1 .* quadratic step"):
            scale_by_hager_zhang_linesearch(
                max_evaluations=1, quadratic_step=quadratic_step, initial_step="one"
            )
    tx = scale_by_hager_zhang_linesearch(max_evaluations=1, quadratic_step=False)
    x, grad = jnp.zeros(2), jnp.full(2, -2.0)
    updates, _ = tx.update(
        -grad, tx.init(x), x, value=parabola(x), grad=grad, value_fn=parabola
    )
    assert parabola(updates) < parabola(x)
