"""The presets for large batches: the chains that they are; no scale to choose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import (
    diagnostics,
    large_batch_nlcg,
    scale_by_curvature_step,
    scale_by_kronecker,
    scale_by_nlcg,
    scale_by_orthogonalization,
    tuning_free_nlcg,
)

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 40)), jnp.float32)
TARGETS = jnp.asarray(np.random.default_rng(1).normal(size=(3, 40)), jnp.float32)


def outputs_fn(w):
    return w @ INPUTS


def output_loss_fn(outputs):
    return jnp.mean((outputs - TARGETS) ** 2)


def loss(w):
    return output_loss_fn(outputs_fn(w))


def direction(preconditioner):
    return scale_by_nlcg(
        "pr+", preconditioner=preconditioner, beta_smoothing=0.9, beta_max=0.95
    )


def run(tx, steps=4, scale=1.0, w=None):
    w = jnp.zeros([3, 6]) if w is None else w

    def scaled_loss_fn(outputs):
        return scale * output_loss_fn(outputs)

    def step(carry, _):
        w, state = carry
        grads = jax.grad(lambda w: scaled_loss_fn(outputs_fn(w)))(w)
        updates, state = tx.update(
            grads,
            state,
            w,
            outputs_fn=outputs_fn,
            output_loss_fn=scaled_loss_fn,
            value_fn=lambda w: scaled_loss_fn(outputs_fn(w)),
        )
        return (optax.apply_updates(w, updates), state), None

    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0])((w, tx.init(w)))


def test_large_batch_is_smoothed_pr_on_kronecker_factors():
    tx = large_batch_nlcg(0.03, weight_decay=0.1)
    chain = optax.chain(
        direction(scale_by_kronecker()),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(0.03),
    )
    start = jnp.ones([3, 6])
    np.testing.assert_allclose(run(tx, w=start)[0], run(chain, w=start)[0], rtol=1e-5)


@pytest.mark.parametrize(
    "curvature", ["gauss_newton", pytest.param("hessian", marks=pytest.mark.slow)]
)
def test_tuning_free_takes_the_minimiser_along_the_direction(curvature):
    tx = tuning_free_nlcg(
        0.5,
        curvature=curvature,
        refresh_period=2,
        preconditioner=scale_by_orthogonalization(),
    )
    chain = optax.chain(
        direction(scale_by_orthogonalization()),
        scale_by_curvature_step(curvature, refresh_period=2),
        optax.scale_by_learning_rate(0.5),
    )
    np.testing.assert_allclose(run(tx)[0], run(chain)[0], rtol=1e-5, atol=1e-6)


def test_tuning_free_does_not_depend_on_the_scale_of_the_loss():
    w, state = run(tuning_free_nlcg(), steps=6)
    other, _ = run(tuning_free_nlcg(), steps=6, scale=256.0)
    # Powers of two commute with rounding, but for the 1e-8 in Adam's denominator.
    np.testing.assert_allclose(other, w, rtol=1e-3, atol=1e-4)
    assert diagnostics(state)["num_curvature_skips"] == 0


@pytest.mark.slow
def test_tuning_free_solves_least_squares():
    w, _ = run(tuning_free_nlcg(optax.linear_schedule(1.0, 0.0, 60)), steps=60)
    best = np.linalg.lstsq(np.asarray(INPUTS).T, np.asarray(TARGETS).T, rcond=None)[0].T
    # Of the excess over the least loss, one part in a thousand at most is left.
    least = float(loss(jnp.asarray(best)))
    assert loss(w) - least < 1e-3 * (loss(jnp.zeros([3, 6])) - least)
