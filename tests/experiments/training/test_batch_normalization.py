"""Batch normalization in training: its statistics and what they leave alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import models
from experiments.training import make_program
from tests.experiments.training.quick_runs import quick, train


@pytest.mark.slow
def test_batch_statistics_are_carried_through_a_curvature_method(few_digits):
    config = quick(
        model="cnn",
        optimizer_options={"preconditioner": "secant"},
        learning_rate=0.2,
        epochs=15,
    )
    program, (report,) = train(config, few_digits)
    before = program.init(0, 1.0).batch_stats
    changed = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), before, report.state.batch_stats
    )
    assert all(jax.tree.leaves(changed))
    assert program.evaluate(report.state, few_digits.train).loss < 0.8
    assert {"beta", "cosine", "grad_norm", "num_secants"} <= set(report.metrics)
    assert report.metrics["num_secants"][-1] > 0


def test_l2_leaves_batch_normalization_alone(few_digits):
    config = quick(model="cnn", optimizer="sgd", batch_size=None, epochs=1)
    losses = {}
    for l2 in (0.0, 2.0):
        _, (report,) = train(dataclasses.replace(config, l2=l2), few_digits)
        losses[l2] = report.metrics["loss"][0]
    params = make_program(config, few_digits).init(0, 1.0).params
    kernels = [params["Conv_0"], params["Conv_1"], params["Dense_0"]]
    expected = optax.tree.norm(kernels, squared=True)
    assert losses[2.0] - losses[0.0] == pytest.approx(float(expected), rel=1e-5)


def test_batch_statistics_are_those_of_the_micro_batches_in_turn(few_digits):
    config = quick(
        model="cnn", optimizer="sgd", batch_size=None, epochs=1, micro_batches=2
    )
    program, (report,) = train(config, few_digits)
    model, state = models.build("cnn", 10), program.init(0, config.learning_rate)
    stats = state.batch_stats
    apply = jax.jit(functools.partial(model.apply, train=True, mutable="batch_stats"))
    for half in few_digits.train.images.reshape(2, 32, 8, 8, 1):
        variables = {"params": state.params, "batch_stats": stats}
        stats = apply(variables, half)[1]["batch_stats"]
    for mine, plain in zip(
        jax.tree.leaves(report.state.batch_stats), jax.tree.leaves(stats), strict=True
    ):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_ghost_batches_are_normalized_as_micro_batches_are(few_digits):
    config = quick(model="cnn", optimizer="sgd", batch_size=None, epochs=1, l2=0.01)
    _, (micro,) = train(dataclasses.replace(config, micro_batches=4), few_digits)
    _, (ghost,) = train(dataclasses.replace(config, ghost_batch_size=16), few_digits)
    np.testing.assert_allclose(ghost.metrics["loss"], micro.metrics["loss"], rtol=1e-5)
    for mine, other in zip(
        jax.tree.leaves((ghost.state.params, ghost.state.batch_stats)),
        jax.tree.leaves((micro.state.params, micro.state.batch_stats)),
        strict=True,
    ):
        # Float32 sums of 1024 numbers in another order, and a variance by difference.
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
