"""One of several processes that train on parts of a batch which only they hold."""

import json
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments import data, meshes
from experiments.config import RunConfig
from experiments.processes import ProcessOptions, connect
from experiments.training import hyperparameters_of
from experiments.training.step import make_step

BATCH, STEPS = 16, 20


def train(count, index):
    """The losses; of each batch this process reads its own rows only."""
    config = RunConfig(optimizer="nlcg_pr+_rms", learning_rate=1e-3, shard_devices=2)
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


if __name__ == "__main__":
    coordinator, processes, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    connect(ProcessOptions(False, coordinator, processes, number, 60, 20))
    print(json.dumps(train(processes, number)))
