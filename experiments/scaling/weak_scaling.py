"""Weak scaling over virtual devices of one machine: ratios that show overhead.

Virtual devices share the cores of the machine, so ``n`` of them, each with the same
number of images, take at best ``n`` times as long as one. Seconds say nothing about
pods; the ratios show whether an optimizer or a layout adds work with every device.
"""

import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.config import RunConfig
from experiments.data import Split
from experiments.optimizers import choice_of
from experiments.training import meshes
from experiments.training.hyperparameters import hyperparameters_of
from experiments.training.step import make_step

PyTree = Any

IMAGE_SIZE, CLASSES = 16, 10


class WeakScaling(NamedTuple):
    """One optimizer on a number of devices.

    Attributes:
      optimizer: name of the optimizer.
      devices: number of devices.
      ratio: time per step relative to one device, divided by the number of devices: 1
        if the time is proportional to the images.
      to_reference: time per step relative to the first optimizer on the same number of
        devices, median over rounds.
    """

    optimizer: str
    devices: int
    ratio: float
    to_reference: float


def measure(
    optimizers: tuple[str, ...],
    counts: tuple[int, ...],
    images_per_device: int,
    rounds: int,
) -> list[WeakScaling]:
    """Times steps of a small convolutional network, alternating between optimizers.

    Args:
      optimizers: names of the optimizers; the first is the reference.
      counts: numbers of devices; the others are compared with the first.
      images_per_device: images per step and device.
      rounds: timed steps per optimizer and number of devices.

    Raises:
      ValueError: if there are fewer devices than needed.
    """
    if max(counts) > jax.device_count():
        raise ValueError(
            f"devices={max(counts)} exceeds the {jax.device_count()} devices of this "
            "machine; set XLA_FLAGS=--xla_force_host_platform_device_count"
        )
    times: dict[tuple[str, int], list[float]] = {}
    for count in counts:
        runs = {name: _Run(name, count, images_per_device) for name in optimizers}
        for _ in range(rounds):
            for name, run in runs.items():
                times.setdefault((name, count), []).append(run.seconds())
    return [
        WeakScaling(
            name,
            count,
            statistics.median(times[name, count])
            / statistics.median(times[name, counts[0]])
            / (count / counts[0]),
            statistics.median(
                mine / other
                for mine, other in zip(
                    times[name, count], times[optimizers[0], count], strict=True
                )
            ),
        )
        for name in optimizers
        for count in counts
    ]


class _Run:
    """A compiled step and its state."""

    def __init__(self, optimizer: str, devices: int, images_per_device: int):
        name, options = choice_of(optimizer)
        config = RunConfig(
            model="cnn", optimizer=name, optimizer_options=options, learning_rate=1e-3
        )
        mesh = meshes.make_mesh(devices=jax.devices()[:devices])
        step = make_step(config, CLASSES, 1000, mesh)
        rng = np.random.default_rng(0)
        rows = (1, devices * images_per_device)
        images: Any = rng.normal(size=(*rows, IMAGE_SIZE, IMAGE_SIZE, 3))
        labels: Any = rng.integers(CLASSES, size=rows)
        batch = Split(images.astype(np.float32), labels.astype(np.int32))
        self.batch = meshes.joined(batch, NamedSharding(mesh, meshes.BATCH))
        state = step.init(0, 1e-3, hyperparameters_of(config), batch.images[0, :1])
        self.state: PyTree = meshes.place(state, step.shardings(state))
        self.step = jax.jit(step.update, donate_argnums=0)
        self.seconds()  # compiles

    def seconds(self) -> float:
        """Takes a step and returns how long it took."""
        start = time.perf_counter()
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start
