import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.micro_batches import (
    half_gradients,
    mean_gradient,
    mean_loss,
    stacked_outputs,
)

BATCH = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)


def loss_fn(params, batch_stats, batch):
    """Counts the batches and keeps the mean of the last in its statistics."""
    label_loss = jnp.mean(jnp.cosh(batch @ params["w"]))
    accuracy = jnp.mean(batch[:, 0] > 0)
    loss = label_loss + 0.1 * params["b"] ** 2
    return loss, ((batch_stats[0] + 1, batch.mean()), label_loss, accuracy)


@pytest.fixture
def params():
    return {"w": jnp.array([0.3, -0.2, 0.5]), "b": jnp.float32(2.0)}


@pytest.mark.parametrize(
    ("count", "unroll"), [(1, False), (4, True), (4, False)], ids=str
)
def test_means_over_micro_batches_are_those_of_the_whole_batch(count, unroll, params):
    parts = BATCH.reshape(count, -1, 3)
    outcome, stats = mean_gradient(loss_fn, params, (0.0, 0.0), parts, unroll=unroll)
    loss, grads = jax.value_and_grad(lambda p: loss_fn(p, (0.0, 0.0), BATCH)[0])(params)
    np.testing.assert_allclose(outcome.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(outcome.label_loss, loss - 0.4, rtol=1e-6)
    np.testing.assert_allclose(outcome.accuracy, (BATCH[:, 0] > 0).mean(), rtol=1e-6)
    for name, grad in grads.items():
        np.testing.assert_allclose(outcome.grads[name], grad, rtol=1e-5)
    assert stats[0] == count
    np.testing.assert_allclose(stats[1], parts[-1].mean(), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 4])
def test_curvature_is_that_of_the_whole_batch(count, params):
    def hvp(value_fn):
        vector = jax.tree.map(jnp.ones_like, params)
        return jax.jvp(jax.grad(value_fn), (params,), (vector,))[1]

    parts = BATCH.reshape(count, -1, 3)
    found = hvp(lambda p: mean_loss(loss_fn, p, (0.0, 0.0), parts))
    expected = hvp(lambda p: loss_fn(p, (0.0, 0.0), BATCH)[0])
    for name, product in expected.items():
        np.testing.assert_allclose(found[name], product, rtol=1e-5)


def test_halves_are_gradients_of_their_own_parts(params):
    parts = BATCH.reshape(4, -1, 3)
    outcome, halves, stats = half_gradients(
        mean_gradient, loss_fn, params, (0.0, 0.0), parts
    )
    whole, _ = mean_gradient(loss_fn, params, (0.0, 0.0), parts)
    assert stats[0] == 4
    for half, rows in zip(halves, (BATCH[:12], BATCH[12:])):
        grads = jax.grad(lambda p, r: loss_fn(p, (0.0, 0.0), r)[0])(params, rows)
        np.testing.assert_allclose(half["w"], grads["w"], rtol=1e-5)
    np.testing.assert_allclose(outcome.grads["w"], whole.grads["w"], rtol=1e-5)
    np.testing.assert_allclose(outcome.loss, whole.loss, rtol=1e-6)
    with pytest.raises(ValueError, match="micro_batches=3 must be even"):
        half_gradients(
            mean_gradient, loss_fn, params, (0.0, 0.0), BATCH.reshape(3, -1, 3)
        )


def test_outputs_of_micro_batches_are_stacked(params):
    def outputs_fn(params, batch_stats, batch):
        return batch @ params["w"] + batch_stats

    for count in (1, 4):
        found = stacked_outputs(outputs_fn, params, 0.5, BATCH.reshape(count, -1, 3))
        expected = (BATCH @ params["w"] + 0.5).reshape(count, -1)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
