"""``python -m experiments.cifar100_cpu``: the comparison of the paper on a CPU core.

Ten classes of CIFAR-100 in 16x16 pixels, 1024 images, a ResNet-8 of half the width,
for 30 epochs at a small, a large and the full batch, which is made of micro-batches.
In this order:

1. the paper's recipe for SGD, momentum, RMSProp and the paper's NLCG;
2. the same number of quasi-random trials for every method over learning rate, memory
   and decay of weights, chosen by validation accuracy, and the best with fresh seeds.

The command goes on where it was stopped. Prepare the data first::

    python -m experiments.prepare cifar100
    python -m experiments.cifar100_cpu

``--small`` goes through all of it with a few images and two epochs.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import rich.console
import tyro

from experiments import data
from experiments.config import RunConfig
from experiments.runner import PlannedRun, Runner, finished
from experiments.sweep import Sweep, run_sweep

PAPER_RATE_PER_IMAGE = 0.1 / 256
MICRO_BATCH_SIZE = 256  # what a core computes fastest; also for batch normalisation
PAPER_OPTIMIZERS = ("sgd", "heavy_ball", "rmsprop", "paper_nlcg_fr")
TUNED_OPTIMIZERS = (
    "nlcg_pr+_rms",
    "nlcg_pr+_orthogonal",
    "sgd",
    "nesterov",
    "adamw",
    "lamb",
    "muon",
)


@dataclasses.dataclass(frozen=True)
class Study:
    """How large everything is.

    Attributes:
      batch_sizes: None is the full batch.
      train_examples: images that are trained on.
      validation_examples: images that hyperparameters are chosen by.
      epochs: of all runs.
      epochs_per_report: after which a run is evaluated.
      optimizers: of the tuned comparison.
      trials: of each at first.
      extensions: how often everybody may get further trials.
      seeds: of the paper's recipe.
      final_seeds: of the best trials.
    """

    batch_sizes: tuple[int | None, ...] = (256, None, 32)
    train_examples: int = 1024
    validation_examples: int = 2000
    epochs: int = 30
    epochs_per_report: int = 10
    optimizers: tuple[str, ...] = TUNED_OPTIMIZERS
    trials: int = 4
    extensions: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    final_seeds: tuple[int, ...] = (10, 11, 12)


SMALL = Study(
    batch_sizes=(32, None),
    train_examples=64,
    validation_examples=64,
    epochs=2,
    epochs_per_report=1,
    optimizers=("nesterov", "nlcg_pr+_rms"),
    trials=2,
    seeds=(0,),
    final_seeds=(10,),
)


@dataclasses.dataclass(frozen=True)
class CpuArguments:
    """Compares optimisers on a part of CIFAR-100, within an hour or so on a CPU.

    Attributes:
      data_dir: folder of all prepared data sets.
      out: folder of the records.
      small: everything at small scale, to see that it runs.
    """

    data_dir: Path = data.DATA_DIR
    out: Path = Path("runs/cifar100_cpu")
    small: bool = False


def run_study(study: Study, out: Path, runner: Runner) -> None:
    """Goes through the study, or through what is left of it after a stop."""
    for planned in paper_runs(study, out / "paper"):
        if finished(planned) is None:
            runner.run(planned)
    for batch_size in study.batch_sizes:
        run_sweep(tuned_sweep(study, batch_size), out / "tuned", runner)


def paper_runs(study: Study, folder: Path) -> Iterator[PlannedRun]:
    """The paper's recipe at every batch size."""
    for batch_size in study.batch_sizes:
        for optimizer in PAPER_OPTIMIZERS:
            for seed in study.seeds:
                config = dataclasses.replace(
                    base_config(study, batch_size),
                    optimizer=optimizer,
                    learning_rate=PAPER_RATE_PER_IMAGE
                    * (batch_size or study.train_examples),
                    schedule="paper",
                    seed=seed,
                )
                name = f"batch_{batch_size or 'full'}-{optimizer}-seed{seed}.jsonl"
                yield PlannedRun(config, folder / name)


def tuned_sweep(study: Study, batch_size: int | None) -> Sweep:
    """The tuned comparison at a batch size."""
    config = dataclasses.replace(
        base_config(study, batch_size),
        schedule="cosine",
        warmup_epochs=study.epochs / 10,
    )
    return Sweep(
        configs=tuple(
            dataclasses.replace(config, optimizer=optimizer)
            for optimizer in study.optimizers
        ),
        dimensions=("learning_rate", "memory", "decay"),
        trials=study.trials,
        extensions=study.extensions,
        final_seeds=study.final_seeds,
        criterion="validation_accuracy",
    )


def base_config(study: Study, batch_size: int | None) -> RunConfig:
    """What all runs at a batch size have in common."""
    return RunConfig(
        dataset="cifar100",
        model="resnet8_narrow",
        batch_size=batch_size,
        micro_batches=max(1, (batch_size or study.train_examples) // MICRO_BATCH_SIZE),
        epochs=study.epochs,
        epochs_per_report=study.epochs_per_report,
        steps_per_call=1,  # convolutions on a CPU
        l2=2e-4,
        ema_decay=0.9999,
        augmentation="crop_flip",
        train_examples=study.train_examples,
        validation_examples=study.validation_examples,
        classes=10,
        halved_images=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(CpuArguments, args=arguments)
    runner = Runner(given.data_dir, rich.console.Console())
    try:
        run_study(SMALL if given.small else Study(), given.out, runner)
    except (ValueError, data.NotPreparedError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
