"""One of several processes that train on parts of a batch which only they hold."""

import json
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments import data
from experiments.config import RunConfig
from experiments.data.photo_stream import PhotoStream
from experiments.training import (
    compile_program,
    hyperparameters_of,
    make_program,
    meshes,
    run_epochs,
)
from experiments.training.processes import ProcessOptions, connect, wait_for_all
from experiments.training.step import make_step
from tests.experiments.fake_imagenet import encoded

BATCH, STEPS = 16, 20


def train(count, index):
    """The losses; of each batch this process reads its own rows only."""
    config = RunConfig(
        optimizer="nlcg",
        optimizer_options={"preconditioner": "rms"},
        learning_rate=1e-3,
        shard_devices=2,
    )
    mesh = meshes.make_mesh(None, config.shard_devices)
    step = make_step(config, 10, STEPS, mesh)
    split = data.load("digits").train
    images, labels = np.asarray(split.images), np.asarray(split.labels)
    state = step.init(0, 1e-3, hyperparameters_of(config), images[:1])
    state = meshes.place(state, step.shardings(state))
    sharding = NamedSharding(mesh, meshes.BATCH)
    update, losses, share = jax.jit(step.update), [], BATCH // count
    for number in range(STEPS):
        first = number * BATCH + index * share
        own = data.Split(*(x[None, first : first + share] for x in (images, labels)))
        state, metrics = update(state, meshes.joined(own, sharding))
        losses.append(float(metrics["loss"]))
    return losses


def photos(count):
    source = [
        {"image": encoded(row), "label": row % 3, "file_name": f"{row}"}
        for row in range(count)
    ]
    return PhotoStream(source, 8)


def train_on_a_stream():
    """Losses, then loss and accuracy of a test set that does not fill its batch.

    Each process decodes its share of the images, as the program asks it to.
    """
    dataset = data.StreamedDataset(3, photos(32), None, photos(13))
    config = RunConfig(
        dataset="imagenet2012",
        optimizer="nlcg",
        optimizer_options={"preconditioner": "rms"},
        learning_rate=1e-3,
        batch_size=16,
        micro_batches=2,
        epochs=8,
        epochs_per_report=2,
        standardization="imagenet",
        shard_devices=2,
        seed=3,
    )
    program = make_program(config, dataset)
    compiled = compile_program(program, dataset)
    wait_for_all("compiled")
    state, losses = program.init(config.seed, config.learning_rate), []
    for report in run_epochs(compiled, config, dataset, state):
        state = report.state
        losses.extend(map(float, report.metrics["loss"]))
    return [*losses, *map(float, program.evaluate(state, dataset.test))]


if __name__ == "__main__":
    coordinator, processes, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    connect(ProcessOptions(False, coordinator, processes, number, 60, 20))
    print(json.dumps([train(processes, number), train_on_a_stream()]))
