"""Training and evaluation on a stream, against the same by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import models
from experiments.config import RunConfig
from experiments.data import Share, StreamedDataset
from experiments.data.photo_stream import PhotoStream
from experiments.data.preprocessing import CHANNEL_DEVIATIONS, CHANNEL_MEANS
from experiments.records.run import record_run
from experiments.training import compile_program, make_program, run_epochs
from tests.experiments.fake_imagenet import encoded

CONFIG = RunConfig(
    dataset="imagenet2012",
    optimizer="sgd",
    learning_rate=1e-30,  # the weights stay
    batch_size=16,
    micro_batches=2,
    steps_per_call=2,
    epochs=4,
    epochs_per_report=2,
    l2=0.01,
    label_smoothing=0.1,
    standardization="imagenet",
    seed=3,
)


def photos(count):
    source = [
        {"image": encoded(row), "label": row % 3, "file_name": f"{row}"}
        for row in range(count)
    ]
    return PhotoStream(source, 8)


def figures(state, images, labels):
    """Mean loss and accuracy, batch by batch, of the weights of a state."""
    pixels = (images - np.array(CHANNEL_MEANS)) / np.array(CHANNEL_DEVIATIONS)
    logits = models.build("mlp", 3).apply(
        {"params": state.params}, jnp.asarray(pixels, jnp.float32), train=False
    )
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), (logits.argmax(-1) == labels).mean()


@pytest.mark.slow
def test_steps_and_evaluations_are_those_of_the_batches_of_a_stream(tmp_path):
    train, test = photos(32), photos(13)
    dataset = StreamedDataset(3, train, None, test)
    program = make_program(CONFIG, dataset)
    compiled = compile_program(program, dataset)
    state = program.init(CONFIG.seed, CONFIG.learning_rate)
    reports = list(run_epochs(compiled, CONFIG, dataset, state))
    batches = train.training_batches(seed=3, first=0, batch_size=16, share=Share())
    state = reports[-1].state
    expected = [figures(state, *batch) for batch in itertools.islice(batches, 8)]
    for column, name in enumerate(("label_loss", "accuracy")):
        found = np.concatenate([report.metrics[name] for report in reports])
        np.testing.assert_allclose(found, np.array(expected)[:, column], rtol=1e-4)

    # 13 images and what fills the batch up to a multiple of the devices.
    batches = test.evaluation_batches(batch_size=13, share=Share())
    ((images, labels),) = batches
    evaluation = program.evaluate(state, test)
    np.testing.assert_allclose(evaluation, figures(state, images, labels), rtol=1e-4)

    # A run that begins in the middle goes on with the batches that are left.
    middle = jax.tree.map(jnp.copy, program.init(3, CONFIG.learning_rate))
    middle = middle._replace(step=middle.step + 4)
    (last,) = run_epochs(compiled, CONFIG, dataset, middle)
    np.testing.assert_array_equal(last.metrics["loss"], reports[1].metrics["loss"])

    # The objective also has the L2 term and smoothed labels.
    summary = record_run(tmp_path / "run.jsonl", compiled, CONFIG, dataset)
    last_loss, last_accuracy = np.mean(expected[4:], axis=0)
    np.testing.assert_allclose(summary["train_loss"], last_loss, rtol=1e-4)
    np.testing.assert_allclose(summary["train_accuracy"], last_accuracy, rtol=1e-4)
    assert abs(reports[1].metrics["loss"].mean() - last_loss) > 0.01
