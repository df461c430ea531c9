"""Values of gradients, losses and statistics in the `jax.shard_map` form."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import meshes
from experiments.training.micro_batches import mean_gradient
from experiments.training.per_device import (
    mean_gradient_over_devices,
    mean_loss_over_devices,
)
from nlcg_optax import hessian_vector_product

pytestmark = pytest.mark.devices

DEVICES = 8


@pytest.fixture(scope="module")
def regression():
    """Two micro-batches of 16 rows, and the loss ``mean((x w - y)²) / 2``."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 3)).astype(np.float32)
    y = rng.normal(size=(2, 16)).astype(np.float32)
    w = np.array([0.5, -1.0, 2.0], np.float32)

    def loss_fn(w, stats, batch):
        x, y = batch
        residual = x @ w - y
        loss = jnp.mean(residual**2) / 2
        return loss, ({"mean": jnp.mean(x, 0)}, loss, jnp.float32(0))

    return loss_fn, w, (x, y)


def normal_equations(w, x, y):
    """Loss, gradient and Hessian in float64."""
    x, y = x.reshape(-1, 3).astype(np.float64), y.reshape(-1).astype(np.float64)
    residual = x @ w - y
    return np.mean(residual**2) / 2, x.T @ residual / len(y), x.T @ x / len(y)


@pytest.mark.parametrize(("shape", "unroll"), [((DEVICES, 1), False), ((2, 4), True)])
def test_gradient_and_loss_are_those_of_the_whole_batch(regression, shape, unroll):
    """Not the devices' sum, which the check of varying axes makes of it unawares."""
    loss_fn, w, batches = regression
    mesh = meshes.make_mesh(*shape)
    loss, grad, hessian = normal_equations(w, *batches)
    direction = jnp.array([1.0, 2.0, -1.0])

    @jax.jit
    def compute(w):
        value_fn = functools.partial(
            mean_loss_over_devices, mesh, loss_fn, batch_stats={}, batches=batches
        )
        outcome, stats = mean_gradient_over_devices(
            mesh, loss_fn, w, {"mean": jnp.zeros(3)}, batches, unroll=unroll
        )
        value, of_loss = jax.value_and_grad(lambda w: value_fn(params=w))(w)
        product = hessian_vector_product(lambda w: value_fn(params=w), w, direction)
        return outcome, stats, value, of_loss, product

    outcome, stats, value, of_loss, product = compute(jnp.asarray(w))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    close(outcome.loss, loss)
    close(value, loss)
    close(outcome.grads, grad)
    close(of_loss, grad)
    close(product, hessian @ np.asarray(direction), rtol=1e-5)
    close(stats["mean"], batches[0][1].mean(0), atol=1e-6)  # of the last micro-batch


def test_gradients_may_travel_in_bfloat16(regression):
    loss_fn, w, batches = regression
    mesh = meshes.make_mesh()
    reduce = functools.partial(mean_gradient_over_devices, mesh, loss_fn)
    stats = {"mean": jnp.zeros(3)}
    rough = jax.jit(lambda w: reduce(w, stats, batches, jnp.bfloat16)[0])(
        jnp.asarray(w)
    )
    _, grad, _ = normal_equations(w, *batches)
    assert rough.grads.dtype == jnp.float32
    # The rounding of eight terms and their sum to eight bits.
    np.testing.assert_allclose(rough.grads, grad, atol=2**-8 * 2 * abs(grad).max())
    assert not np.allclose(rough.grads, grad, rtol=1e-5)
    # What comes back is a number of eight bits.
    np.testing.assert_array_equal(
        rough.grads, rough.grads.astype(jnp.bfloat16).astype(jnp.float32)
    )


def test_batch_normalization_is_that_of_one_device():
    """So the gradient is that of as many micro-batches on one device."""
    norm = nn.BatchNorm(use_running_average=False, momentum=0.5)
    x = jax.random.normal(jax.random.key(0), [16, 3])
    variables = norm.init(jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: leaf + 0.5, variables)
    target = jnp.arange(3.0)

    def loss_fn(params, stats, batch):
        out, updated = norm.apply(
            {"params": params, "batch_stats": stats}, batch, mutable=["batch_stats"]
        )
        loss = jnp.mean(jnp.tanh(out - target) ** 2)
        return loss, (updated["batch_stats"], loss, jnp.float32(0))

    arguments = (variables["params"], variables["batch_stats"])
    mesh = meshes.make_mesh()
    spread, stats = jax.jit(
        lambda *args: mean_gradient_over_devices(mesh, loss_fn, *args)
    )(*arguments, x[None])
    in_turn, _ = jax.jit(lambda *args: mean_gradient(loss_fn, *args))(
        *arguments, x.reshape(DEVICES, 2, 3)
    )
    whole, _ = mean_gradient(loss_fn, *arguments, x[None])
    for mine, other in zip(jax.tree.leaves(spread), jax.tree.leaves(in_turn)):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)
    assert not np.allclose(spread.loss, whole.loss, rtol=1e-3)
    # Half of the old statistics and half of the mean over devices.
    np.testing.assert_allclose(stats["mean"], 0.25 + 0.5 * x.mean(0), rtol=1e-5)
    own = x.reshape(DEVICES, 2, 3).var(1).mean(0)
    np.testing.assert_allclose(stats["var"], 0.75 + 0.5 * own, rtol=1e-5)
