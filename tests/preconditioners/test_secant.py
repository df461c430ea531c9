"""`scale_by_diagonal_secant`: both secants against dense algebra, and its guards."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import diagnostics, nlcg, scale_by_diagonal_secant, scale_by_nlcg
from nlcg_optax.preconditioners.diagonal_scaling import divide_by_diagonal


def loss(params):
    x = jnp.concatenate([params["a"], jnp.ravel(params["b"])])
    return jnp.sum(jnp.cosh(x)) + 0.3 * jnp.prod(x) + jnp.sum(x[:-1] * x[1:]) ** 2


PARAMS = {"a": np.array([0.3, -0.7]), "b": np.array([[1.1, 0.4]])}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def dense_hessian(params):
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    return np.asarray(jax.hessian(lambda x: loss(unravel(x)))(vector))


def as_params(vector):
    return {"a": jnp.asarray(vector[:2]), "b": jnp.asarray(vector[2:]).reshape(1, 2)}


def test_hvp_secant_follows_the_dense_hessian(x64):
    params = jax.tree.map(jnp.asarray, PARAMS)
    tx = scale_by_diagonal_secant(secant="hvp")
    hessian, h = dense_hessian(params), np.ones(4)
    state, update = tx.init(params), jax.jit(tx.update, static_argnames="value_fn")
    rng, taken = np.random.default_rng(3), 0
    for t in range(8):
        g, d = rng.normal(size=(2, 4))
        z, state = update(
            as_params(g), state, params, value_fn=loss, previous_direction=as_params(d)
        )
        if t > 0 and d @ hessian @ d > 0:
            y = hessian @ d
            h = np.abs(h - (h * d) ** 2 / (d @ (h * d)) + y**2 / (y @ d))
            taken += 1
        np.testing.assert_allclose(flat(state.diagonal), h, rtol=1e-12)
        expected = g / (h + 1e-8) if t > 0 else g
        np.testing.assert_allclose(flat(z), expected, rtol=1e-12)
    assert state.diagnostics.num_secants == taken > 3


def test_hvp_secant_does_not_depend_on_the_length_of_the_direction(x64):
    params = jax.tree.map(jnp.asarray, PARAMS)
    tx = scale_by_diagonal_secant(secant="hvp")
    diagonals = []
    for length in (1e-12, 1.0, 1e12):
        state = tx.init(params)
        for d in np.random.default_rng(0).normal(size=(4, 4)):
            _, state = tx.update(
                params,
                state,
                params,
                value_fn=loss,
                previous_direction=as_params(length * d),
            )
        diagonals.append(flat(state.diagonal))
    np.testing.assert_allclose(diagonals[0], diagonals[1], rtol=1e-9)
    np.testing.assert_allclose(diagonals[2], diagonals[1], rtol=1e-9)
    assert np.abs(diagonals[1] - 1).max() > 0.1  # it did move


@pytest.mark.parametrize(
    ("grad", "h", "num_skips"),
    # y = 2: |1 - 1.5 / 1.5 + 4.5 / 2.5|; y = .4 is less than eps.
    [(3.0, 1.8, 0), (1.4, 1.0, 1)],
)
def test_eps_and_damping_by_hand(grad, h, num_skips):
    tx = scale_by_diagonal_secant(1.0, eps=0.5, damping=0.25)
    step, first, second = jnp.array([1.0]), jnp.array([1.0]), jnp.array([grad])
    _, state = tx.update(first, tx.init(step), step, previous_direction=step)
    z, state = tx.update(second, state, step, previous_direction=step)
    np.testing.assert_allclose(state.diagonal, [h], rtol=1e-6)
    np.testing.assert_allclose(z, [grad / (h + 0.25)], rtol=1e-6)
    assert state.diagnostics.num_secant_skips == num_skips


@pytest.mark.parametrize(("cosine", "num_skips"), [(0.9e-6, 1), (1.1e-6, 0)])
def test_curvature_below_a_millionth_of_the_norms_is_refused(cosine, num_skips):
    tx = scale_by_diagonal_secant(secant="hvp")
    x, direction = jnp.ones(2), jnp.array([3.0, 0.0])
    hessian = jnp.array([[cosine, 1.0], [1.0, 0.0]])
    state = tx.init(x)
    for _ in range(2):
        _, state = tx.update(
            x,
            state,
            x,
            hvp_fn=lambda params, vector: hessian @ vector,
            previous_direction=direction,
        )
    # Along the first axis h is the curvature; the second has y^2 / y^T p = 1 / cosine.
    expected = [1, 1] if num_skips else [cosine, 1 + 1 / cosine]
    np.testing.assert_allclose(state.diagonal, expected, rtol=1e-6)
    assert state.diagnostics.num_secant_skips == num_skips


def test_indefinite_curvature_is_refused():
    tx = scale_by_diagonal_secant(secant="hvp")
    params = jnp.array([1.0, 1.0])
    saddle = lambda x: x[0] ** 2 - x[1] ** 2
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(
            params,
            state,
            params,
            value_fn=saddle,
            previous_direction=jnp.array([0.0, 1.0]),
        )
    np.testing.assert_array_equal(state.diagonal, 1)
    assert state.diagnostics.num_secant_skips == 2
    assert state.diagnostics.curvature == -2.0


def test_refresh_period_pays_only_when_due():
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(x**2 * jnp.array([1.0, 9.0]))

    tx = scale_by_nlcg(
        "fr", preconditioner=scale_by_diagonal_secant(secant="hvp", refresh_period=3)
    )
    params = jnp.array([1.0, 1.0])
    state, update = tx.init(params), jax.jit(tx.update, static_argnames="value_fn")
    for _ in range(7):
        _, state = update(params, state, params, value_fn=counted)
    jax.effects_barrier()
    info = diagnostics(state)
    assert info["num_secants"] + info["num_secant_skips"] == 2  # at steps 3 and 6
    assert len(calls) == 2


def test_parameter_differences_equal_the_learning_rate_form(x64):
    """Both know the step when the learning rate is constant and nothing follows."""
    trajectories = []
    for learning_rate in (0.05, None):
        secant = scale_by_diagonal_secant(learning_rate)
        tx = nlcg(0.05, "fr", preconditioner=secant)
        params = jax.tree.map(jnp.asarray, PARAMS)

        @jax.jit
        def step(params, state, tx=tx):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for _ in range(12):
            params, state = step(params, state)
        trajectories.append(flat(params))
        assert diagnostics(state)["num_secants"] > 3
    # Differences of parameters of order one carry 1e-16 / step of relative error.
    np.testing.assert_allclose(trajectories[0], trajectories[1], rtol=1e-9)


def test_non_finite_gradient_leaves_the_diagonal_alone():
    tx = scale_by_diagonal_secant(0.1)
    params = jnp.ones(2)
    d = jnp.array([1.0, -1.0])
    state = tx.init(params)
    for g in (jnp.array([1.0, 2.0]), jnp.array([2.0, 1.0])):
        _, state = tx.update(g, state, params, previous_direction=d)
    _, after = tx.update(jnp.array([jnp.nan, 1.0]), state, params, previous_direction=d)
    chex.assert_trees_all_equal(after.diagonal, state.diagonal)
    chex.assert_trees_all_equal(after.grad_prev, state.grad_prev)
    chex.assert_tree_all_finite(after)


def test_reciprocal_that_overflows_leaves_the_gradient():
    tiny = jnp.array([2.0, 0.0, 1e-39], jnp.float32)
    z = divide_by_diagonal(jnp.ones(3), tiny, 0.0, active=jnp.array(True))
    np.testing.assert_array_equal(z, [0.5, 1.0, 1.0])


def test_low_precision_and_complex_parameters():
    for dtype in (jnp.bfloat16, jnp.complex64):
        tx = scale_by_nlcg("fr", preconditioner=scale_by_diagonal_secant(0.1))
        params = jnp.array([1.0, 2.0], dtype)
        state = tx.init(params)
        for scale in (1.0, 0.5):
            updates, state = tx.update(params * jnp.asarray(scale, dtype), state)
        assert updates.dtype == dtype
        assert jnp.isrealobj(state.preconditioner_state.diagonal)
        chex.assert_tree_all_finite(state)


@pytest.mark.parametrize("secant", ["difference", "hvp"])
def test_curvature_above_the_range_of_float16_is_clipped(secant):
    tx = scale_by_diagonal_secant(secant=secant)
    curvature, step = jnp.array([1.0, 3e5]), jnp.array([1e-3, 1e-2], jnp.float16)
    loss = lambda x: 0.5 * jnp.sum(curvature * x.astype(jnp.float32) ** 2)
    x = jnp.array([1e-2, 1e-1], jnp.float16)
    state = tx.init(x)
    for _ in range(4):
        g = jax.grad(loss)(x)
        z, state = tx.update(g, state, x, value_fn=loss, previous_direction=-step)
        x -= step
    largest = float(jnp.finfo(jnp.float16).max)
    assert state.diagonal[1] == largest
    np.testing.assert_allclose(z[1], g[1] / largest, rtol=2**-10)


def test_quotient_above_the_range_of_float16_is_clipped():
    g = jnp.array([6e4, -6e4, jnp.inf], jnp.float16)
    z = divide_by_diagonal(g, jnp.full(3, 0.5), 0.0, active=jnp.array(True))
    np.testing.assert_array_equal(z, jnp.array([65504, -65504, jnp.inf], jnp.float16))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"secant": "bfgs"}, "secant='bfgs' is unknown; allowed are"),
        ({"refresh_period": 0}, "refresh_period=0 must be an integer of at least 1"),
        ({"eps": 0.0}, "eps=0.0 must be finite and greater than 0"),
        ({"eps": np.array([1.0, 2.0])}, "eps=.* must be finite and greater than 0"),
        ({"damping": -1.0}, "damping=-1.0 must be finite and not below 0"),
        ({"learning_rate": 0.1, "secant": "hvp"}, "learning_rate=0.1 must be None"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        scale_by_diagonal_secant(**kwargs)


def test_a_previous_direction_of_another_shape_is_named():
    tx = scale_by_diagonal_secant(secant="hvp")
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="previous_direction has shape"):
        tx.update(
            x,
            tx.init(x),
            x,
            value_fn=lambda x: jnp.sum(x**2),
            previous_direction=jnp.ones(3),
        )


def test_missing_extras_are_named():
    params = jnp.ones(2)
    by_params = scale_by_diagonal_secant()
    with pytest.raises(ValueError, match="update needs `params`"):
        by_params.update(params, by_params.init(params))
    alone = scale_by_diagonal_secant(0.1)
    with pytest.raises(ValueError, match="update needs `previous_direction`"):
        alone.update(params, alone.init(params), params)
    nested = nlcg(0.1, preconditioner=scale_by_diagonal_secant(secant="hvp"))
    with pytest.raises(ValueError, match="update needs `value_fn`"):
        nested.update(params, nested.init(params), params)
