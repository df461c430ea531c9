"""Sampled diagonals: unbiased within derived bounds; average, damping and the rest."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from nlcg_optax import (
    diagnostics,
    scale_by_equilibration,
    scale_by_gauss_newton_bartlett,
    scale_by_hutchinson,
    scale_by_nlcg,
    split_parameters,
)
from tests.curvature.network import (
    X,
    cross_entropy,
    dense_gauss_newton,
    dense_hessian,
    flat,
    logits,
    loss,
    network_params,
)

FAILURE = 1e-9  # probability that a bound below does not hold, over all elements
SAMPLES = 1000


def _samples(tx, params, **extras):
    """The mean of independent samples, which an average without memory shows."""

    @jax.jit
    def run(state):
        def step(state, _):
            _, state = tx.update(params, state, params, **extras)
            return state, flat(state.sample_average)

        return jax.lax.scan(step, state, length=SAMPLES)[1]

    samples = np.asarray(run(tx.init(params)))
    assert len(np.unique(samples[:, 0])) > 2  # they do differ
    return samples.mean(axis=0)


def _bernstein(variance, bound):
    """Deviation of a mean of bounded variables, for all elements with high odds."""
    odds = np.log(2 * len(variance) / FAILURE)
    linear = bound * odds / (3 * SAMPLES)
    return linear + np.sqrt(linear**2 + 2 * variance * odds / SAMPLES)


def test_hutchinson_is_unbiased(x64):
    params = network_params()
    for kind, extras, matrix in (
        ("hessian", {"value_fn": loss}, dense_hessian(loss, params)),
        (
            "gauss_newton",
            {"outputs_fn": logits, "output_loss_fn": cross_entropy},
            dense_gauss_newton(logits, cross_entropy, params),
        ),
    ):
        tx = scale_by_hutchinson(kind, decay=0.0, refresh_period=1)
        mean = _samples(tx, params, **extras)
        # v_i (B v)_i - B_ii is a sum of independent signs times B_ij: by Hoeffding
        # its mean over samples deviates by t with odds 2 exp(-N t² / 2 s²).
        rest = matrix - np.diag(np.diag(matrix))
        odds = 2 * np.log(2 * len(matrix) / FAILURE)
        allowed = np.sqrt(np.sum(rest**2, axis=1) * odds / SAMPLES)
        assert np.all(np.abs(mean - np.diag(matrix)) <= allowed)
        # The bound tells something: it is far below the diagonal's size.
        assert allowed.max() < 0.5 * np.abs(np.diag(matrix)).max()


def test_equilibration_is_unbiased(x64):
    params = network_params()
    matrix = dense_hessian(loss, params)
    tx = scale_by_equilibration(decay=0.0, refresh_period=1)
    mean = _samples(tx, params, value_fn=loss)
    rows = np.sum(matrix**2, axis=1)
    # The variance of the square of a sum of signed numbers, and its largest value.
    variance = 2 * (rows**2 - np.sum(matrix**4, axis=1))
    allowed = _bernstein(variance, np.sum(np.abs(matrix), axis=1) ** 2)
    assert np.all(np.abs(mean - rows) <= allowed)
    assert np.all(allowed < rows)


def test_bartlett_is_unbiased_for_labels_drawn_from_the_model(x64):
    params = network_params()
    mean = _samples(
        scale_by_gauss_newton_bartlett(decay=0.0, refresh_period=1),
        params,
        outputs_fn=logits,
    )
    # All labellings of the five examples, each with its probability.
    probabilities = np.asarray(jax.nn.softmax(logits(params)))
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    jacobian = np.asarray(jax.jacrev(lambda x: logits(unravel(x)))(vector))
    values, weights = [], []
    for labels in itertools.product(range(3), repeat=len(X)):
        residual = probabilities - np.eye(3)[list(labels)]
        gradient = np.einsum("ec,ecp->p", residual, jacobian) / len(X)
        values.append(len(X) * gradient**2)
        weights.append(np.prod(probabilities[np.arange(len(X)), list(labels)]))
    values, weights = np.array(values), np.array(weights)
    diagonal = weights @ values
    expected = np.diag(dense_gauss_newton(logits, cross_entropy, params))
    np.testing.assert_allclose(diagonal, expected, rtol=1e-9)  # Bartlett's identity
    variance = weights @ (values - diagonal) ** 2
    allowed = _bernstein(variance, values.max(axis=0))
    assert np.all(np.abs(mean - diagonal) <= allowed)
    assert np.median(allowed / diagonal) < 0.5


@pytest.mark.slow
def test_bartlett_of_complex_parameters_is_the_mean_of_their_parts():
    # Both parts have the curvature 9; with random signs every sample is exact.
    def signs(key, z):
        return jnp.sign(jax.random.normal(key, z.shape))

    tx = scale_by_gauss_newton_bartlett(signs, relative_damping=0.0)
    w = jnp.array(1 + 2j)
    z, _ = tx.update(
        9 * w, tx.init(w), w, outputs_fn=lambda w: 3 * jnp.array([w.real, w.imag])
    )
    np.testing.assert_allclose(z, w, rtol=4 * 2**-23)


def test_bartlett_of_squared_errors_is_unbiased(x64):
    params = network_params()
    tx = scale_by_gauss_newton_bartlett("gaussian", decay=0.0, refresh_period=1)
    mean = _samples(tx, params, outputs_fn=logits)
    half_squares = lambda z: 0.5 * jnp.mean(jnp.sum(z**2, axis=1))
    diagonal = np.diag(dense_gauss_newton(logits, half_squares, params))
    # Every element is a χ² of one degree times its mean (Laurent and Massart, 2000).
    x = np.log(2 * len(diagonal) / FAILURE)
    allowed = 2 * np.sqrt(x / SAMPLES) + 2 * x / SAMPLES
    assert allowed < 0.5
    assert np.all(np.abs(mean - diagonal) <= allowed * diagonal)


@pytest.mark.slow
def test_complex_parameters_have_the_mean_curvature_of_their_parts(
    x64, standard_promotion
):
    # Curvature 2 in the real and 6 in the imaginary part; no mixed terms.
    f = lambda z: jnp.sum(jnp.real(z) ** 2 + 3 * jnp.imag(z) ** 2)
    z = jnp.array([1 + 2j, 3 - 1j])
    for make, expected in (
        (scale_by_hutchinson, 4.0),
        (scale_by_equilibration, np.sqrt((4 + 36) / 2)),
    ):
        tx = make(refresh_period=1, relative_damping=0.0)
        scaled, _ = tx.update(z, tx.init(z), z, value_fn=f)
        np.testing.assert_allclose(scaled, z / expected, rtol=1e-12)


# --- the common part, with a diagonal Hessian whose samples are exact -----------------


def _diagonal_loss(x, *, h):
    return 0.5 * jnp.sum(h * x**2)


def _diagonal_outputs(x, *, h):
    return jnp.sqrt(jnp.abs(h)) * x


def _all_ones(key, outputs):
    return jnp.ones_like(outputs)


@pytest.mark.parametrize(
    ("make", "average", "curvature"),
    [
        (scale_by_hutchinson, lambda h: h, np.abs),
        (scale_by_equilibration, np.square, np.sqrt),
        (
            functools.partial(scale_by_gauss_newton_bartlett, _all_ones),
            np.abs,
            lambda average: average,
        ),
    ],
    ids=["hutchinson", "equilibration", "bartlett"],
)
def test_average_damping_and_power_by_hand(x64, make, average, curvature):
    decay, period, damping, power = 0.7, 2, 0.3, 0.75
    tx = make(
        decay=decay,
        refresh_period=period,
        relative_damping=damping,
        power=power,
        seed=5,
    )
    rng = np.random.default_rng(0)
    x, ema, seen = jnp.ones(4), 0.0, 0
    state = tx.init(x)
    np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(5)))
    functions = {"value_fn": _diagonal_loss, "outputs_fn": _diagonal_outputs}
    update = jax.jit(lambda g, s, h: tx.update(g, s, x, **functions, h=h))
    for t in range(5):
        h, g = rng.normal(size=4), 2 * rng.normal(size=4)
        z, state = update(jnp.asarray(g), state, jnp.asarray(h))
        if t % period == 0:
            ema, seen = decay * ema + (1 - decay) * average(h), seen + 1
        d = curvature(ema / (1 - decay**seen))
        expected = g / (d + damping * d.mean()) ** power
        np.testing.assert_allclose(z, expected, rtol=1e-10)
        found = diagnostics(state)
        np.testing.assert_allclose(found["diagonal_mean"], d.mean(), rtol=1e-10)
    assert (found["num_samples"], found["num_sample_skips"]) == (3, 0)


def test_equilibration_of_the_gauss_newton_matrix():
    scale, x = jnp.array([1.0, 10.0]), jnp.array([1.0, 0.5])
    half_squares = lambda z: 0.5 * jnp.sum(z**2)
    outputs = lambda x: scale * x**2  # J = diag(2, 10) here
    tx = scale_by_equilibration("gauss_newton", relative_damping=0.0)
    g = jnp.array([3.0, -7.0])
    z, _ = tx.update(
        g,
        tx.init(x),
        x,
        outputs_fn=outputs,
        output_loss_fn=half_squares,
        # The Hessian is diag(6, 150).
        value_fn=lambda x: half_squares(outputs(x)),
    )
    np.testing.assert_allclose(z, g / np.array([4.0, 100.0]), rtol=1e-6)


def test_samples_that_are_not_finite_are_refused_and_counted():
    x = jnp.array([1.0, 2.0])
    tx = scale_by_hutchinson(refresh_period=1, relative_damping=0.0, decay=0.5)
    update = jax.jit(lambda s, h: tx.update(x, s, x, value_fn=_diagonal_loss, h=h))
    z, state = update(tx.init(x), jnp.array([jnp.nan, 1.0]))
    np.testing.assert_array_equal(z, x)  # the identity until there is a sample
    z, state = update(state, jnp.array([2.0, 4.0]))
    np.testing.assert_allclose(z, [0.5, 0.5], rtol=1e-6)
    z, state = update(state, jnp.array([jnp.inf, -jnp.inf]))
    np.testing.assert_allclose(z, [0.5, 0.5], rtol=1e-6)
    found = diagnostics(state)
    assert (found["num_samples"], found["num_sample_skips"]) == (1, 2)


def test_no_curvature_at_all_is_the_identity():
    x = jnp.array([1.0, 2.0])
    tx = scale_by_equilibration()
    z, _ = tx.update(x, tx.init(x), x, value_fn=lambda p: jnp.sum(p))
    np.testing.assert_array_equal(z, x)


@pytest.mark.slow
def test_the_seed_decides_every_number(standard_promotion):
    params = network_params(jnp.float32)

    @jax.jit
    def average(key):
        # The state of a seed but for its key.
        tx = scale_by_hutchinson(refresh_period=1)
        state = tx.init(params)._replace(key=key)
        for _ in range(2):
            _, state = tx.update(params, state, params, value_fn=loss)
        return state.sample_average, state.key

    keys = [scale_by_hutchinson(seed=s).init(params).key for s in (3, 3, 4)]
    first, again, other = (average(key) for key in keys)
    np.testing.assert_array_equal(flat(first), flat(again))
    assert np.all(flat(first[0]) != flat(other[0]))
    assert np.any(first[1] != keys[0])


@pytest.mark.devices
def test_probes_of_parts_split_by_hand_are_independent():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def coupled(x):  # B is all ones
        return 0.5 * jax.lax.psum(jnp.sum(x), "x") ** 2

    def run(x):
        tx = split_parameters(scale_by_hutchinson(decay=0.0), "x")
        total = lambda p, v: jnp.full_like(v, jax.lax.psum(jnp.sum(v), "x"))
        _, state = tx.update(x, tx.init(x), x, hvp_fn=total)
        return state.sample_average, diagnostics(state)["diagonal_mean"][None]

    split = jax.shard_map(
        run, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False
    )
    sample, means = jax.jit(split)(jnp.ones(64))
    # v_i times the same sum of all signs: their product is that sum's square.
    total = np.abs(sample[0])
    signs = np.asarray(sample) / total if total else None
    assert signs is not None
    assert total == abs(signs.sum())
    parts = signs.reshape(8, 8)
    assert len(np.unique(parts, axis=0)) > 4
    np.testing.assert_allclose(means, total)


@pytest.mark.devices
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_labels_of_a_model_split_by_hand_are_those_of_one_device(likelihood):
    """Every device sees all outputs, of which the labels are drawn."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    inputs = jax.random.normal(jax.random.key(0), (16, 8))
    w = jax.random.normal(jax.random.key(1), (8, 3))
    tx = scale_by_gauss_newton_bartlett(likelihood)

    def run(tx, w, outputs_fn):
        z, state = tx.update(w, tx.init(w), w, outputs_fn=outputs_fn)
        return z, state.sample_average

    def split(w, inputs):
        wrapped = split_parameters(tx, "x")
        return run(wrapped, w, lambda w: jax.lax.psum(inputs @ w, "x"))

    specs = {"in_specs": (P("x"), P(None, "x")), "out_specs": P("x")}
    found = jax.jit(jax.shard_map(split, mesh=mesh, **specs))(w, inputs)
    expected = jax.jit(lambda w: run(tx, w, lambda w: inputs @ w))(w)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_behind_the_direction_it_rescales_what_gradients_do_not(x64):
    """A quadratic of condition 1e4 in as many steps as one of condition one."""
    h = jnp.logspace(0, 4, 6)
    tx = optax.chain(
        scale_by_nlcg("fr", preconditioner=scale_by_hutchinson(relative_damping=0.0)),
        optax.scale_by_learning_rate(1.0),
    )
    x = jnp.ones(6)
    updates, _ = tx.update(h * x, tx.init(x), x, value_fn=_diagonal_loss, h=h)
    np.testing.assert_allclose(x + updates, 0, atol=1e-10)


@pytest.mark.slow
def test_narrow_parameters_have_a_wide_average():
    params = network_params(jnp.bfloat16)
    for make, extras in (
        (scale_by_hutchinson, {"value_fn": loss}),
        (scale_by_gauss_newton_bartlett, {"outputs_fn": logits}),
    ):
        tx = make()
        z, state = jax.jit(lambda p, tx=tx, e=extras: tx.update(p, tx.init(p), p, **e))(
            params
        )
        assert {leaf.dtype for leaf in z.values()} == {jnp.dtype(jnp.bfloat16)}
        dtypes = {leaf.dtype for leaf in state.sample_average.values()}
        assert dtypes == {jnp.dtype(jnp.float32)}
        assert np.all(np.isfinite(flat(z).astype(np.float32)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"curvature": "fisher"}, "curvature='fisher' is unknown"),
        ({"decay": 1.0}, r"decay=1.0 is not in \[0, 1\)"),
        ({"refresh_period": 0}, "refresh_period=0 must be an integer of at least 1"),
        (
            {"relative_damping": -1.0},
            "relative_damping=-1.0 must be finite and not below 0",
        ),
        ({"power": 0.0}, "power=0.0 must be finite and greater than 0"),
        ({"seed": 1.5}, "seed=1.5 must be an integer"),
        ({"seed": 2**63}, "must be an integer of at most 64 bits"),
    ],
)
def test_bad_arguments(kwargs, message):
    for make in (scale_by_hutchinson, scale_by_equilibration):
        with pytest.raises(ValueError, match=message):
            make(**kwargs)


def test_missing_and_unfit_extras_are_named():
    x = jnp.ones(2)
    tx = scale_by_hutchinson()
    with pytest.raises(ValueError, match="scale_by_hutchinson: update needs `value_fn"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="update needs `params`"):
        tx.update(x, tx.init(x), value_fn=jnp.sum)
    with pytest.raises(TypeError, match="dtype int32"):
        tx.init(jnp.ones(2, jnp.int32))
    with pytest.raises(ValueError, match="the result of hvp_fn has the tree struct"):
        tx.update(x, tx.init(x), x, hvp_fn=lambda p, v: {"w": v})
    tx = scale_by_gauss_newton_bartlett()
    with pytest.raises(ValueError, match="update needs `outputs_fn`"):
        tx.update(x, tx.init(x), x, value_fn=jnp.sum)
    with pytest.raises(TypeError, match="to return one real array with at least one"):
        tx.update(x, tx.init(x), x, outputs_fn=jnp.sum)
    with pytest.raises(ValueError, match="likelihood='poisson' is unknown"):
        scale_by_gauss_newton_bartlett("poisson")
    tx = scale_by_gauss_newton_bartlett(lambda key, z: z[:1])
    with pytest.raises(ValueError, match="the result of likelihood has shape"):
        tx.update(x, tx.init(x), x, outputs_fn=lambda p: p)
