"""Checks of a device before long runs: does it match the CPU, and how fast is it?"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import models
from experiments.config import RunConfig
from experiments.data import Dataset, Split, preprocessing
from experiments.training import compile_program, make_program, run_epochs

PARITY_EXAMPLES = 64


class Parity(NamedTuple):
    """How far a loss and its gradient are from those of the CPU in float32.

    Attributes:
      platform: platform of the device.
      compute_dtype: dtype of the model on the device.
      loss_difference: difference relative to the CPU's loss.
      gradient_difference: norm of the difference, relative to the CPU's gradient.
    """

    platform: str
    compute_dtype: str
    loss_difference: float
    gradient_difference: float


def check_parity(config: RunConfig, dataset: Dataset, compute_dtype: str) -> Parity:
    """Compares the default device with the CPU, at the initial weights."""
    split = jax.device_get(jax.tree.map(lambda x: x[:PARITY_EXAMPLES], dataset.train))
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    model = models.build(config.model, dataset.num_classes)
    with jax.default_device(cpu):
        images = preprocessing.standardize(jnp.asarray(split.images[:1]))
        init = jax.jit(functools.partial(model.init, train=False))
        variables = init(jax.random.key(config.seed), images)
    exact = _loss_and_gradient(config, dataset, "float32", variables, split, cpu)
    found = _loss_and_gradient(config, dataset, compute_dtype, variables, split, device)
    difference = jax.tree.map(np.subtract, found[1], exact[1])
    return Parity(
        platform=device.platform,
        compute_dtype=compute_dtype,
        loss_difference=float(abs(found[0] - exact[0]) / exact[0]),
        gradient_difference=float(
            optax.tree.norm(difference) / optax.tree.norm(exact[1])
        ),
    )


def images_per_second(config: RunConfig, dataset: Dataset, reports: int = 2) -> float:
    """Throughput of training, without compilation and without the first report."""
    program = make_program(config, dataset)
    compiled = compile_program(program, dataset)
    state = program.init(config.seed, config.learning_rate)
    timed = dataclasses.replace(
        config, epochs=(1 + reports) * config.epochs_per_report, warmup_epochs=None
    )
    _, *rest = run_epochs(compiled, timed, dataset, state)
    steps = sum(len(report.metrics["loss"]) for report in rest)
    return steps * program.batch_size / sum(report.seconds for report in rest)


def _loss_and_gradient(
    config: RunConfig,
    dataset: Dataset,
    compute_dtype: str,
    variables: dict[str, jax.Array],
    split: Split,
    device: jax.Device,
) -> tuple[jax.Array, jax.Array]:
    """Returned on the host, computed on ``device`` without its float32 shortcuts."""
    model = models.build(config.model, dataset.num_classes, compute_dtype)

    def loss_fn(params: jax.Array, rest: dict[str, jax.Array]) -> jax.Array:
        logits, _ = model.apply(
            {**rest, "params": params},
            preprocessing.standardize(images),
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(
            optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        )

    images, labels = jax.device_put(split, device)
    params, rest = jax.device_put(
        (variables["params"], {k: v for k, v in variables.items() if k != "params"}),
        device,
    )
    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(jax.value_and_grad(loss_fn))(params, rest))
