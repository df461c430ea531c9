"""Training and evaluation on a stream, against the same by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import models
from experiments.config import RunConfig
from experiments.data import StreamedDataset
from experiments.data.photo_stream import PhotoStream
from experiments.data.preprocessing import CHANNEL_DEVIATIONS, CHANNEL_MEANS
from experiments.records.run import record_run
from experiments.training import compile_program, make_program, meshes, run_epochs
from experiments.training.feeding import CallShape, make_feed, rows_on
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
    batches = train.training_batches(seed=3, first=0, batch_size=16, rows=range(16))
    state = reports[-1].state
    expected = [figures(state, *batch) for batch in itertools.islice(batches, 8)]
    for column, name in enumerate(("label_loss", "accuracy")):
        found = np.concatenate([report.metrics[name] for report in reports])
        np.testing.assert_allclose(found, np.array(expected)[:, column], rtol=1e-4)

    # 13 images and what fills the batch up to a multiple of the devices.
    batches = test.evaluation_batches(batch_size=13, rows=range(13))
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


# Two chips per host on a slice of 4 x 2: the neighbors of a mesh are those along a row
# of the slice.
BY_COORDINATES = (0, 4, 1, 5, 2, 6, 3, 7)


@pytest.mark.devices
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("order", [tuple(range(8)), BY_COORDINATES])
def test_any_number_of_processes_reads_the_batches_of_one(processes, order):
    devices = jax.devices()
    mesh = meshes.make_mesh(None, 2, devices=[devices[number] for number in order])
    train, size = photos(32), 8
    feed = make_feed(train, CallShape(1, 2, size), mesh)
    expected = next(feed.open(3, 1))
    found = [np.zeros_like(part) for part in expected]
    each = len(devices) // processes
    for first in range(0, len(devices), each):
        rows = rows_on(devices[first : first + each], mesh, size)
        assert len(rows) == size // processes
        batches = train.training_batches(seed=3, first=2, batch_size=size, rows=rows)
        for part, batch in enumerate(itertools.islice(batches, 2)):
            found[0][0, part, rows], found[1][0, part, rows] = batch
    np.testing.assert_array_equal(found[0], expected.images)
    np.testing.assert_array_equal(found[1], expected.labels)


@pytest.mark.devices
def test_rows_of_devices_that_are_no_neighbors_of_the_mesh():
    devices = jax.devices()
    mesh = meshes.make_mesh(devices=[devices[number] for number in BY_COORDINATES])
    assert [rows_on(devices[at : at + 4], mesh, 16) for at in (0, 4)] == [
        [0, 1, 4, 5, 8, 9, 12, 13],
        [2, 3, 6, 7, 10, 11, 14, 15],
    ]
    assert rows_on(devices[:2], mesh, 16) == [0, 1, 4, 5]
