"""``python -m experiments.studies.cifar100_cpu``: the paper on a CPU core.

Ten classes of CIFAR-100 in 16x16 pixels, 1024 images, a ResNet-8 of half the width,
for 30 epochs at a small, a large and the full batch, which is made of micro-batches.
In this order:

1. the paper's recipe for SGD, momentum, RMSProp and the paper's NLCG;
2. the same number of quasi-random trials for every method over learning rate, memory
   and decay of weights, chosen by validation accuracy, and the best with fresh seeds;
3. the mean of the β that NLCG found there, as the constant memory of two methods that
   are tuned anew with it;
4. SWAP from two thirds of the tuned large-batch runs of two methods, and its cost.

The command goes on where it was stopped, and ends with reports in its folder. Prepare
the data first::

    python -m experiments.data.prepare cifar100
    python -m experiments.studies.cifar100_cpu

``--small`` goes through all of it with a few images and two epochs.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import rich.console
import tyro

from experiments import data
from experiments.config import RunConfig
from experiments.errors import ending_with_a_message
from experiments.records.files import (
    RunRecord,
    mean_over_steps,
    read_record,
    read_records,
)
from experiments.report.__main__ import write_report
from experiments.swap.config import SwapConfig
from experiments.swap.records import PlannedSwap, record_swap, swap_table
from experiments.tuning.runner import PlannedRun, Runner, finished
from experiments.tuning.sweep import Sweep, run_sweep

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
# Whose β is averaged, and the options that then hold the mean.
ADAPTIVE_OPTIMIZER = "nlcg_pr+_orthogonal"
CONSTANT_MEMORY = {"muon": "momentum", "nlcg_constant_orthogonal": "beta"}
SWAP_OPTIMIZERS = ("nesterov", "nlcg_pr+_rms")
WORKER_OPTIMIZER = "nesterov"


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
      swap_optimizers: of the first phase of SWAP, at the first batch size; the workers
        are `WORKER_OPTIMIZER`, as tuned at the last one.
      workers: of its second phase.
      worker_epochs: of each of them.
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
    swap_optimizers: tuple[str, ...] = SWAP_OPTIMIZERS
    workers: int = 4
    worker_epochs: int = 5


SMALL = Study(
    batch_sizes=(32, None),
    train_examples=64,
    validation_examples=64,
    epochs=2,
    epochs_per_report=1,
    optimizers=("nesterov", "nlcg_pr+_orthogonal"),
    trials=2,
    seeds=(0,),
    final_seeds=(10,),
    swap_optimizers=("nesterov",),
    workers=2,
    worker_epochs=1,
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
    for batch_size in study.batch_sizes:
        sweep = mean_beta_sweep(study, batch_size, out)
        run_sweep(sweep, out / "mean_beta", runner)
    for swap in swap_runs(study, out):
        if not swap.path.exists():
            dataset = runner.dataset(swap.config.large)
            record_swap(swap.path, swap.config, dataset)


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


def mean_beta_sweep(study: Study, batch_size: int | None, out: Path) -> Sweep:
    """What `ADAPTIVE_OPTIMIZER` is worth beside a constant memory of the same mean."""
    finals = [
        _tuned(out, batch_size, ADAPTIVE_OPTIMIZER, seed) for seed in study.final_seeds
    ]
    memory = round(mean_over_steps(finals, "beta"), 3)
    sweep = tuned_sweep(study, batch_size)
    return dataclasses.replace(
        sweep,
        configs=tuple(
            dataclasses.replace(
                sweep.configs[0], optimizer=optimizer, optimizer_options={name: memory}
            )
            for optimizer, name in CONSTANT_MEMORY.items()
        ),
        dimensions=("learning_rate", "decay"),
    )


def _tuned(out: Path, batch_size: int | None, optimizer: str, seed: int) -> RunRecord:
    name = f"batch_{batch_size or 'full'}-{optimizer}-seed{seed}.jsonl"
    return read_record(out / "tuned" / "finals" / name)


def swap_runs(study: Study, out: Path) -> Iterator[PlannedSwap]:
    """SWAP from the tuned runs at the first batch size, with the last one's workers."""
    for optimizer in study.swap_optimizers:
        for seed in study.final_seeds:
            large = _tuned(out, study.batch_sizes[0], optimizer, seed).config
            small = _tuned(out, study.batch_sizes[-1], WORKER_OPTIMIZER, seed).config
            config = SwapConfig(
                # A report an epoch, at which it may stop.
                large=dataclasses.replace(large, epochs_per_report=1),
                small=dataclasses.replace(
                    small,
                    epochs=study.worker_epochs,
                    epochs_per_report=study.worker_epochs,
                    warmup_epochs=None,
                    ema_decay=0.0,
                ),
                workers=study.workers,
                stop_epoch=max(1, study.epochs * 2 // 3),
            )
            stem = f"batch_{study.batch_sizes[0] or 'full'}-{optimizer}-seed{seed}"
            yield PlannedSwap(config, out / "swap" / f"{stem}.json")


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


def write_reports(study: Study, out: Path, console: rich.console.Console) -> None:
    """Writes a report of each table next to its records, and ``swap.md``."""
    write_report(read_records(out / "paper"), out / "paper", console)
    for name in ("tuned", "mean_beta"):
        write_report(read_records(out / name / "finals"), out / name, console)
    paths = [planned.path for planned in swap_runs(study, out)]
    (out / "swap.md").write_text(swap_table(paths), encoding="utf-8")


def training_seconds(study: Study, out: Path) -> float:
    """What all runs took to train, and their programs to compile.

    Evaluations, and the programs of SWAP, do not count.
    """
    records = [read_record(path) for path in out.rglob("*.jsonl")]
    trained = [record.steps[-1]["seconds"] for record in records]
    # Runs that share a program have its very number, which counts once.
    compiled = {r.summary["compile_seconds"] for r in records if r.summary is not None}
    for planned in swap_runs(study, out):
        trained += json.loads(planned.path.read_text(encoding="utf-8"))["seconds"]
    return math.fsum(trained) + math.fsum(compiled)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(CpuArguments, args=arguments)
    console = rich.console.Console()
    study = SMALL if given.small else Study()
    with ending_with_a_message("experiments.studies.cifar100_cpu", arguments):
        run_study(study, given.out, Runner(given.data_dir, console))
        write_reports(study, given.out, console)
        seconds = training_seconds(study, given.out)
        console.print(f"{seconds / 60:.1f} minutes of training and compiling in all")


if __name__ == "__main__":
    main()
