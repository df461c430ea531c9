"""Batch normalization in training: its statistics and what they leave alone."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import models
from experiments.data import Split
from experiments.data.stream import PADDING_LABEL, LabeledImages
from experiments.training import make_program
from experiments.training import program as program_module
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


@pytest.fixture(scope="module")
def averaged_run(few_digits):
    """A program with an average of the weights, and its last state."""
    config = quick(
        model="cnn", optimizer="sgd", learning_rate=0.5, ema_decay=0.9, epochs=5
    )
    program, (report,) = train(config, few_digits)
    return program, report.state


def test_an_average_of_weights_is_evaluated_with_statistics_of_its_own(
    averaged_run, few_digits
):
    program, state = averaged_run
    split = few_digits.train
    statistics = program.statistics(state, split)
    found = program.evaluate(state, split, statistics)
    # The images are one batch: in training mode it would be normalized by itself.
    logits, _ = program.step.model.apply(
        {"params": state.average, "batch_stats": state.batch_stats},
        program.step.standardize(split.images),
        train=True,
        mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    with_those_of_training = program.evaluate(state, split, state.batch_stats)
    assert with_those_of_training.loss > 1.05 * found.loss


def test_the_last_weights_keep_the_statistics_of_training(averaged_run, few_digits):
    program, state = averaged_run
    unaveraged = state._replace(average=state.params)
    assert program.statistics(unaveraged, few_digits.train) is state.batch_stats
    with pytest.raises(ValueError, match=r"batch_stats=None suits the last weights"):
        program.evaluate(state, few_digits.test)
    program.evaluate(unaveraged, few_digits.test)


def test_statistics_of_a_stream_are_those_of_its_first_images(
    averaged_run, few_digits, monkeypatch
):
    program, state = averaged_run

    class Rows:
        """The images of the split as a stream."""

        examples, shape = 64, few_digits.train.images.shape[1:]

        def evaluation_batches(self, *, batch_size, rows):
            for at in range(0, self.examples, batch_size):
                rows = slice(at, at + batch_size)
                yield LabeledImages(*(np.asarray(x[rows]) for x in few_digits.train))

    monkeypatch.setattr(program_module, "EVALUATION_BATCH_SIZE", 16)
    monkeypatch.setattr(program_module, "MOST_IMAGES", 40)
    first = Split(*(x[:32] for x in few_digits.train))
    expected = program.statistics(state, first)
    found = program.statistics(state, Rows())
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


@pytest.mark.devices
def test_statistics_of_a_stream_leave_out_what_fills_a_batch(few_digits):
    class Rows:
        """The first 35 images, which eight devices cannot share equally."""

        examples, shape = 35, few_digits.train.images.shape[1:]

        def evaluation_batches(self, *, batch_size, rows):
            del rows  # of one process: all
            for at in range(0, self.examples, batch_size):
                end = min(at + batch_size, self.examples)
                batch = LabeledImages(
                    *(np.asarray(x[at:end]) for x in few_digits.train)
                )
                fill = batch_size - (end - at)
                yield LabeledImages(
                    np.pad(batch.images, [(0, fill), (0, 0), (0, 0), (0, 0)]),
                    np.pad(batch.labels, (0, fill), constant_values=PADDING_LABEL),
                )

    config = quick(model="cnn", optimizer="sgd", ema_decay=0.9, epochs=1)
    program = make_program(config, few_digits)
    state = program.init(0, 0.1)
    state = state._replace(average=jax.tree.map(jnp.copy, state.params))
    first = Split(*(x[:32] for x in few_digits.train))
    expected = program.statistics(state, first)
    found = program.statistics(state, Rows())
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
