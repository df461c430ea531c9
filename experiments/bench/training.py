"""``python -m experiments.bench.training``: images per second of whole training steps.

Compares a step of many micro-batches with the bare loss and gradient of one; they take
turns in one process. The step also chooses and augments its images, carries the
statistics of batch normalization, adds gradients and updates.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import tyro

from experiments import models
from experiments.bench.timing import timed
from experiments.config import RunConfig
from experiments.data import Dataset, Split, preprocessing
from experiments.errors import ending_with_a_message
from experiments.training import compile_program, make_program

MODULE = "experiments.bench.training"
CLASSES = 100

PyTree = Any


@dataclasses.dataclass(frozen=True)
class TrainingArguments:
    """Times training steps and bare gradients in turns.

    Attributes:
      model: name of the model.
      side: height and width of the images, in pixels.
      micro_batch_size: images that are computed at a time.
      micro_batches: number of micro-batches in a step.
      optimizer: name of the optimizer.
      rounds: turns of each; the first is not counted.
    """

    model: str = "resnet32"
    side: int = 16
    micro_batch_size: int = 256
    micro_batches: int = 8
    optimizer: str = "paper_nlcg"
    rounds: int = 5

    def __post_init__(self) -> None:
        for name in ("side", "micro_batch_size", "micro_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        if self.rounds < 2:
            raise ValueError(f"rounds={self.rounds!r} must be at least 2")


class Throughput(NamedTuple):
    """Images per second, medians over turns.

    Attributes:
      step: throughput of whole training steps.
      gradient: throughput of loss and gradient alone.
      ratio: median over turns of the first over the second.
      compile_seconds: time of compiling the step.
    """

    step: float
    gradient: float
    ratio: float
    compile_seconds: float


def measure(given: TrainingArguments) -> Throughput:
    """Times both in turns."""
    batch_size = given.micro_batch_size * given.micro_batches
    random = np.random.default_rng(0)
    shape = (2 * batch_size, given.side, given.side, 3)
    split = Split(
        jnp.asarray(random.integers(0, 256, shape, np.uint8)),
        jnp.asarray(random.integers(0, CLASSES, shape[0])),
    )
    dataset = Dataset(CLASSES, split, None, split)
    config = RunConfig(
        dataset="cifar100",
        model=given.model,
        optimizer=given.optimizer,
        learning_rate=1e-3,
        batch_size=batch_size,
        micro_batches=given.micro_batches,
        steps_per_call=1,
        l2=2e-4,
        ema_decay=0.9999,
        augmentation="crop_flip",
    )
    compiled = compile_program(make_program(config, dataset), dataset)
    state = compiled.program.init(0, config.learning_rate)
    gradient, *of_gradient = _bare_gradient(given, split)
    rates: dict[str, list[float]] = {"step": [], "gradient": []}
    for _ in range(given.rounds):
        seconds, (state, _) = timed(compiled.train, state, split)
        rates["step"].append(batch_size / seconds)
        parts = [timed(gradient, *of_gradient)[0] for _ in range(given.micro_batches)]
        rates["gradient"].append(batch_size / sum(parts))
    step, bare = (found[1:] for found in rates.values())
    ratio = statistics.median(a / b for a, b in zip(step, bare, strict=True))
    return Throughput(
        statistics.median(step),
        statistics.median(bare),
        ratio,
        compiled.compile_seconds,
    )


def _bare_gradient(given: TrainingArguments, split: Split) -> tuple[Any, ...]:
    """A compiled function from its three arguments to loss and gradient."""
    model = models.build(given.model, CLASSES)
    part = jax.tree.map(lambda x: x[: given.micro_batch_size], split)
    images = preprocessing.standardize(part.images)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)

    def loss_fn(
        params: PyTree, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        logits, updated = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), updated

    gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    return gradient, variables["params"], images, part.labels


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(TrainingArguments, prog=f"python -m {MODULE}", args=arguments)
    console = rich.console.Console()
    with ending_with_a_message(MODULE, arguments, again="start again with"):
        found = measure(given)
        console.print(
            f"{given.model}, {given.side}x{given.side} pixels, {given.micro_batches} "
            f"micro-batches of {given.micro_batch_size}: a training step "
            f"{found.step:.0f} images/s, loss and gradient alone {found.gradient:.0f}, "
            f"ratio {found.ratio:.2f}; compiling {found.compile_seconds:.0f} s",
            soft_wrap=True,
            highlight=False,
        )


if __name__ == "__main__":
    main()
