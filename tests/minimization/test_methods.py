"""Methods of `minimize`: what may be one, and the directions that are made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import limited_memory_method, minimize, nlcg_method
from nlcg_optax.linesearch.wolfe_search import WolfeRules
from nlcg_optax.minimization.methods import Method, get_method

START = np.array([-1.2, 1.0])  # float64 under x64


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


def rosenbrock(x):
    return jnp.sum((1 - x[::2]) ** 2 + 100 * (x[1::2] - x[::2] ** 2) ** 2)


def after(method, grads, points=None):
    """The last updates, and the state, of the method's direction."""
    grads = jnp.asarray(grads)
    points = jnp.zeros_like(grads) if points is None else jnp.asarray(points)
    state, update = method.direction.init(points[0]), jax.jit(method.direction.update)
    for g, x in zip(grads, points):
        updates, state = update(g, state, x)
    return updates, state


def test_a_method_keeps_as_many_pairs_as_asked_for():
    result = minimize(
        rosenbrock, jnp.zeros(2), method=limited_memory_method(3), max_iterations=9
    )
    assert result.state.direction_state.steps.shape[0] == 3 + 1
    assert result.state.direction_state.diagnostics.num_pairs == 3


def test_limited_memory_with_a_rule_is_nlcg_in_the_metric_of_the_pairs(x64):
    method = limited_memory_method(5, "hs+")
    # Of .5 x^T diag(1, 4) x after a step of .3 along -g: P y = s, so that beta is
    # s^T g / d^T y, with s = (-.3, -1.2), g = (.7, -.8), d = -(1, 4), y = (-.3, -4.8).
    grads = [[1.0, 4.0], [0.7, -0.8]]
    _, state = after(method, grads, [[1.0, 1.0], [0.7, -0.2]])
    np.testing.assert_allclose(state.diagnostics.beta, 0.75 / 19.5, rtol=1e-12)
    assert state.preconditioner_state.steps.shape[0] == 5 + 1
    result = minimize(rosenbrock, START, method=method, tol=1e-9)
    assert bool(result.success), result.message
    np.testing.assert_allclose(result.x, 1.0, atol=1e-7)


@pytest.mark.parametrize(
    "make", [nlcg_method, lambda rule: limited_memory_method(5, rule)]
)
def test_beta_is_not_clipped(make):
    # FR: 4 / 1, where `scale_by_nlcg` allows no more than one by itself.
    updates, _ = after(make("fr"), [[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(updates, [4.0, 2.0], rtol=1e-6)


def test_nlcg_restarts_by_powells_test():
    grads = [[1.0, 0.0], [1.0, 0.0]]
    updates, state = after(nlcg_method("fr"), grads)
    np.testing.assert_allclose(updates, [1.0, 0.0], rtol=1e-6)
    assert bool(state.diagnostics.restarted)
    # FR is 1 here, without the test.
    updates, _ = after(nlcg_method("fr", restart="ascent"), grads)
    np.testing.assert_allclose(updates, [2.0, 0.0], rtol=1e-6)
