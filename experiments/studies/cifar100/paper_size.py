"""The paper's own size: all of CIFAR-100, batch 16,384, 200 epochs.

On CPU cores in 16x16 pixels, with all filters or half of them, or with a ResNet-8 in
place of the paper's ResNet-32; on a GPU in 32x32, after checks of the device.

1. The paper's recipe at its own learning rate: SGD, momentum, RMSProp, and NLCG with FR
   and PR, with and without its preconditioner, and with layer-wise scaling. Among them
   is the untouched method, of which nothing is tuned.
2. A search of the learning rate at a tenth of the length, with equal trials for every
   other method.
3. The best three of these at full length, on all images.
4. What the batch costs: the best baseline at a sixteenth of the batch, searched in the
   same way, for as many epochs.
5. The best three at half and at twice the rates, since a rate that is found at a tenth
   of the length need not be the best for all of it.

With the ResNet-8 the first stage comes last: this size is meant for the other
stages, which take a day with the paper's network.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from experiments.config import RunConfig
from experiments.optimizers import Choice, label_of
from experiments.records.files import RunRecord, read_record
from experiments.report.tables import NONE
from experiments.studies.cifar100.device_checks import device_checks
from experiments.studies.cifar100.plan import PAPER_RATE_PER_IMAGE
from experiments.tuning.jobs import Job
from experiments.tuning.runner import PlannedRun, Runner
from experiments.tuning.study import Stage, jobs_stage, sweep_stage
from experiments.tuning.sweep import (
    Method,
    Sweep,
    final_records,
    rounds,
    sampled_method,
    with_choice,
)

# The most important first: two at a time are trained side by side.
PAPER_ROWS = (
    Choice("paper_nlcg", {"rule": "fr"}),
    Choice("sgd", {}),
    Choice("heavy_ball", {}),
    Choice("rmsprop", {}),
    Choice("paper_nlcg", {"rule": "pr"}),
    Choice("paper_nlcg", {"rule": "fr", "diagonal_bfgs": False}),
    Choice("paper_nlcg", {"rule": "pr", "diagonal_bfgs": False}),
    Choice("paper_nlcg", {"rule": "fr", "layerwise_eta": 0.001}),
)
BASELINES = tuple(
    Choice(name, {}) for name in ("heavy_ball", "lars", "muon", "shampoo")
)
OURS = tuple(Choice(name, {}) for name in ("paper_nlcg", "large_batch_nlcg"))
UNTOUCHED = "tuning_free_nlcg"
LONGEST = 3  # methods of the search that run at full length
TENTH, SIXTEENTH = 10, 16
# Folders of the runs of full length, and what a table calls their recipes.
RECIPES = {
    "paper": "the paper's",
    "long": "tuned",
    "halved": "tuned, half the rate",
    "doubled": "tuned, twice the rate",
}
FACTORS = {"halved": 0.5, "doubled": 2.0}  # of the rates that the search finds


@dataclasses.dataclass(frozen=True)
class PaperSize:
    """The study's size.

    Attributes:
      config: what the runs of full length have in common.
      steps: length of these runs, in steps.
      validation_examples: images that are held out in the search.
      trials: first trials of each method.
      checks: checks of the device before all runs: none, or with updates of all arrays
        of ResNet-50, or of a few small ones.
      tuned_first: whether the paper's recipe is run after all else.
      seed: seed of the runs of full length.
    """

    config: RunConfig
    steps: int
    validation_examples: int
    trials: int
    checks: Literal["none", "small", "full"] = "none"
    tuned_first: bool = False
    seed: int = 10


CPU = PaperSize(
    RunConfig(
        dataset="cifar100",
        model="resnet32",
        halved_images=True,
        batch_size=16384,
        micro_batches=64,
        epochs=200,
        epochs_per_report=40,  # 122 steps
        steps_per_call=1,
        l2=2e-4,
        ema_decay=0.9999,
        augmentation="crop_flip",
        validation_examples=0,
    ),
    steps=610,
    validation_examples=5000,
    trials=4,
)
# A third of the time on a CPU core: half the filters, and a micro-batch, which batch
# normalization sees, of 64 images, whose activations stay in the cache.
HALF = dataclasses.replace(
    CPU,
    config=dataclasses.replace(CPU.config, model="resnet32_half", micro_batches=256),
)
# A quarter of that time: the paper's images, batch and steps, a small network.
SHALLOW = dataclasses.replace(
    HALF,
    config=dataclasses.replace(HALF.config, model="resnet8_narrow"),
    tuned_first=True,
)
GPU = dataclasses.replace(
    CPU,
    config=dataclasses.replace(
        CPU.config,
        halved_images=False,
        micro_batches=16,
        steps_per_call=None,
        compute_dtype="bfloat16",
    ),
    checks="full",
)
SIZES = {"paper": CPU, "paper_half": HALF, "paper_resnet8": SHALLOW, "gpu": GPU}
SMALL_SIZES = {
    name: dataclasses.replace(
        size,
        config=dataclasses.replace(
            size.config,
            model="resnet8_narrow",
            batch_size=64,
            micro_batches=4,
            epochs=10,
            epochs_per_report=5,
            train_examples=128,
            steps_per_call=1,
        ),
        steps=20,
        validation_examples=64,
        trials=2,
        checks="none" if size.checks == "none" else "small",
    )
    for name, size in SIZES.items()
}


def stages(size: PaperSize, out: Path, runner: Runner) -> list[Stage]:
    """All of the study, in its order."""
    whole = search(size, SIXTEENTH, BASELINES[:1])
    *rows, layerwise = paper_runs(size, out)
    checks = device_checks(rows[0].config, out, runner, small=size.checks == "small")
    untouched = untouched_run(size, out)
    recipe = jobs_stage([*rows, untouched, layerwise])
    tuned = [
        sweep_stage(search(size), out / "search"),
        Stage(LONGEST + 1, lambda: iter([[*long_runs(size, out), untouched]])),
        Stage(whole.most_runs + 1, lambda: cost_of_batch(size, out)),
        Stage(len(FACTORS) * LONGEST, lambda: iter([runs_at_other_rates(size, out)])),
    ]
    return [
        *([] if size.checks == "none" else [jobs_stage([checks])]),
        *([*tuned, recipe] if size.tuned_first else [recipe, *tuned]),
    ]


def paper_runs(size: PaperSize, out: Path) -> list[PlannedRun]:
    """The paper's recipe."""
    rate = PAPER_RATE_PER_IMAGE * (size.config.batch_size or 0)
    config = dataclasses.replace(
        size.config, learning_rate=rate, schedule="paper", seed=size.seed
    )
    return [
        _planned(with_choice(config, choice), out / "paper") for choice in PAPER_ROWS
    ]


def search(
    size: PaperSize, part: int = 1, methods: Sequence[Choice] = (*BASELINES, *OURS)
) -> Sweep:
    """The search at a tenth of the length, at a part of the batch."""
    full = size.config
    epochs = full.epochs // TENTH
    config = dataclasses.replace(
        full,
        batch_size=(full.batch_size or 0) // part,
        micro_batches=max(1, full.micro_batches // part),
        epochs=epochs,
        epochs_per_report=epochs,
        schedule="cosine",
        warmup_epochs=epochs / 8,
        validation_examples=size.validation_examples,
    )
    return Sweep(
        tuple(
            sampled_method(with_choice(config, choice), ["learning_rate"], size.trials)
            for choice in methods
        ),
        final_seeds=(size.seed,),
        criterion="validation_accuracy",
    )


def untouched_run(size: PaperSize, out: Path) -> PlannedRun:
    """The method that finds and anneals its steps; it is given only their number."""
    config = dataclasses.replace(
        size.config, learning_rate=1.0, schedule="constant", seed=size.seed
    )
    choice = Choice(UNTOUCHED, {"num_steps": size.steps})
    return _planned(with_choice(config, choice), out / "long")


def long_runs(size: PaperSize, out: Path) -> list[PlannedRun]:
    """The best of the search at full length."""
    best = sorted(final_records(search(size), out / "search"), key=_error)[:LONGEST]
    return [_planned(_long(size, record.config), out / "long") for record in best]


def runs_at_other_rates(size: PaperSize, out: Path) -> list[PlannedRun]:
    """The runs of full length at half their learning rates, then at twice them."""
    return [
        _planned(
            dataclasses.replace(
                run.config, learning_rate=factor * run.config.learning_rate
            ),
            out / folder,
        )
        for folder, factor in FACTORS.items()
        for run in long_runs(size, out)
    ]


def cost_of_batch(size: PaperSize, out: Path) -> Iterator[Sequence[Job]]:
    """The search for the best baseline at a small batch, then its run."""
    sweep = search(size, SIXTEENTH, [best_baseline(size, out)])
    yield from rounds(sweep, out / "small_batch")
    (record,) = final_records(sweep, out / "small_batch")
    yield [_planned(_long(size, record.config), out / "long")]


def best_baseline(size: PaperSize, out: Path) -> Choice:
    """The baseline with the least validation error in the search."""
    records = final_records(search(size, 1, BASELINES), out / "search")
    return Choice(min(records, key=_error).config.optimizer, {})


def write_table(out: Path) -> str:
    """Writes ``paper_size.md``, a table of the runs of full length that have ended."""
    lines = [
        "| recipe | batch | steps | method | learning rate | training loss | "
        "test accuracy %, averaged weights | last weights |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for folder in RECIPES:
        paths = sorted((out / folder).glob("*.jsonl"))
        records = [read_record(path, interrupted=True) for path in paths]
        ended = [r for r in records if r.summary is not None or r.stopped is not None]
        lines += [_row(folder, record) for record in sorted(ended, key=_last_error)]
    text = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "paper_size.md").write_text(text, encoding="utf-8")
    return text


def _row(folder: str, record: RunRecord) -> str:
    config = record.config
    untouched = config.optimizer == UNTOUCHED
    recipe = "untouched" if untouched else RECIPES[folder]
    label = label_of(config.optimizer, config.optimizer_options)
    head = f"| {recipe} | {config.batch_size} | {len(record.steps)} | {label} | "
    rate = "not tuned | " if untouched else f"{config.learning_rate:.3g} | "
    if record.summary is None:
        return f"{head}{rate}diverged | | |"
    found = record.summary

    def field(name: str, factor: float, decimals: int) -> str:
        value = found.get(name)
        return NONE if value is None else f"{factor * value:.{decimals}f}"

    return (
        f"{head}{rate}{field('train_loss', 1, 3)} | {field('test_accuracy', 100, 1)} | "
        f"{field('test_unaveraged_accuracy', 100, 1)} |"
    )


def _long(size: PaperSize, found: RunConfig) -> RunConfig:
    full = size.config
    return dataclasses.replace(
        found,
        epochs=full.epochs,
        epochs_per_report=full.epochs_per_report,
        schedule="cosine",
        warmup_epochs=full.epochs / 8,
        validation_examples=full.validation_examples,
        seed=size.seed,
    )


def _planned(config: RunConfig, folder: Path) -> PlannedRun:
    return PlannedRun(config, folder / f"{Method(config).stem}-seed{config.seed}.jsonl")


def _error(record: RunRecord) -> float:
    return 1 - _figure(record, "validation_accuracy")


def _last_error(record: RunRecord) -> float:
    return 1 - _figure(record, "test_unaveraged_accuracy")


def _figure(record: RunRecord, name: str) -> float:
    """A figure of the summary, minus infinity for a run that diverged."""
    value = None if record.summary is None else record.summary[name]
    return -math.inf if value is None else value
