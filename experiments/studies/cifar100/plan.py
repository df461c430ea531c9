"""The stages of the study, in their order, and what each of them runs."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.config import RunConfig, changes
from experiments.optimizers import Choice
from experiments.records.files import RunRecord, mean_over_steps
from experiments.records.old_names import current_config
from experiments.studies.cifar100.sizes import NESTEROV, ORTHOGONAL, Size
from experiments.swap.config import SwapConfig
from experiments.swap.records import record_swap
from experiments.training import DivergedError
from experiments.tuning.jobs import Job, PlannedJob
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

# The published examples are .8 at batch 2048 and 1.6 at 4096; the rates of other batch
# sizes follow from the same rule and are our inference.
PAPER_RATE_PER_IMAGE = 0.1 / 256
PAPER_METHODS = (
    Choice("sgd", {}),
    Choice("heavy_ball", {}),
    Choice("rmsprop", {}),
    Choice("paper_nlcg", {}),
)
ADAPTIVE = ORTHOGONAL  # whose β is averaged


def stages(size: Size, out: Path, runner: Runner) -> list[Stage]:
    """All of the study, in its order."""
    first, *others = size.batch_sizes
    again = size.tuned_batch_sizes if size.constant_memory else ()
    return [
        jobs_stage(paper_runs(size, first, out)),
        *(
            sweep_stage(tuned_sweep(size, b), out / "tuned")
            for b in size.tuned_batch_sizes
        ),
        *(jobs_stage(paper_runs(size, b, out)) for b in others),
        *(mean_beta_stage(size, b, out) for b in again),
        swap_stage(size, out, runner),
    ]


def config_of(size: Size, batch_size: int | None) -> RunConfig:
    """What all runs at a batch size have in common."""
    examples = batch_size or size.train_examples or 0
    return RunConfig(
        dataset="cifar100",
        model=size.model,
        batch_size=batch_size,
        micro_batches=max(1, examples // size.micro_batch_size),
        epochs=size.epochs,
        epochs_per_report=size.epochs_per_report,
        steps_per_call=size.steps_per_call,
        l2=2e-4,
        ema_decay=0.9999,
        augmentation="crop_flip",
        train_examples=size.train_examples,
        classes=size.classes,
        halved_images=size.halved_images,
        validation_examples=size.held_out_in_paper_runs,
    )


def paper_runs(size: Size, batch_size: int | None, out: Path) -> list[PlannedRun]:
    """The paper's recipe at a batch size."""
    runs = []
    for seed in size.seeds:
        for choice in PAPER_METHODS:
            config = dataclasses.replace(
                with_choice(config_of(size, batch_size), choice),
                learning_rate=PAPER_RATE_PER_IMAGE
                * (batch_size or size.train_examples or 0),
                schedule="paper",
                seed=seed,
            )
            name = f"{Method(config).stem}-seed{seed}.jsonl"
            runs.append(PlannedRun(config, out / "paper" / name))
    return runs


def tuned_sweep(
    size: Size, batch_size: int | None, methods: Sequence[Choice] | None = None
) -> Sweep:
    """A comparison with equal budgets; the methods are ``size.methods`` by default."""
    config = dataclasses.replace(
        config_of(size, batch_size),
        schedule="cosine",
        warmup_epochs=size.warmup * size.epochs,
        validation_examples=size.validation_examples,
    )
    return Sweep(
        tuple(
            sampled_method(
                with_choice(config, choice),
                ("learning_rate", "memory", "decay"),
                size.trials,
            )
            for choice in (size.methods if methods is None else methods)
        ),
        extensions=size.extensions,
        final_seeds=size.final_seeds,
        criterion="validation_accuracy",
    )


def tuned_records(
    size: Size, batch_size: int | None, method: Choice, out: Path
) -> list[RunRecord]:
    """The final runs of a method of the tuned comparison."""
    return final_records(tuned_sweep(size, batch_size, [method]), out / "tuned")


def mean_beta_sweep(size: Size, batch_size: int | None, mean: float) -> Sweep:
    """The constant memories, equal to a mean of β, tuned in learning rate and decay."""
    constant = {**ADAPTIVE.options, "rule": "constant", "beta": mean}
    methods = [Choice("muon", {"momentum": mean}), Choice("nlcg", constant)]
    return tuned_sweep(size, batch_size, methods)


def mean_beta(size: Size, batch_size: int | None, out: Path) -> float:
    """The mean of the β that the adaptive method found, in three digits."""
    records = tuned_records(size, batch_size, ADAPTIVE, out)
    return round(mean_over_steps(records, "beta"), 3)


def mean_beta_stage(size: Size, batch_size: int | None, out: Path) -> Stage:
    """Compares the adaptive β with a constant of the same mean."""

    def later() -> Iterator[Sequence[Job]]:
        mean = mean_beta(size, batch_size, out)
        yield from rounds(mean_beta_sweep(size, batch_size, mean), out / "mean_beta")

    return Stage(mean_beta_sweep(size, batch_size, 0.5).most_runs, later)


def swap_stage(size: Size, out: Path, runner: Runner) -> Stage:
    """SWAP from the tuned runs."""

    def later() -> Iterator[Sequence[Job]]:
        configs = swap_configs(size, out)
        for path, config in configs.items():
            refuse_another_swap(path, config)
        yield [
            PlannedJob(path, functools.partial(swap, path, config, runner))
            for path, config in configs.items()
        ]

    return Stage(len(size.swap_methods) * len(size.final_seeds), later)


def swap_configs(size: Size, out: Path) -> dict[Path, SwapConfig]:
    """The SWAP runs, by the files of their records."""
    large_batch, small_batch = size.tuned_batch_sizes[0], size.tuned_batch_sizes[-1]
    found = {}
    for method in size.swap_methods:
        large = tuned_records(size, large_batch, method, out)
        small = tuned_records(size, small_batch, NESTEROV, out)
        for first, second in zip(large, small, strict=True):
            config = SwapConfig(
                # A report per epoch, at which the first phase may stop.
                large=dataclasses.replace(first.config, epochs_per_report=1),
                small=dataclasses.replace(
                    second.config,
                    epochs=size.worker_epochs,
                    epochs_per_report=size.worker_epochs,
                    warmup_epochs=None,
                    ema_decay=0.0,
                ),
                workers=size.workers,
                stop_epoch=max(1, size.epochs * 2 // 3),
            )
            stem = tuned_sweep(size, large_batch, [method]).methods[0].stem
            found[out / "swap" / f"{stem}-seed{first.config.seed}.json"] = config
    return found


def refuse_another_swap(path: Path, config: SwapConfig) -> None:
    """Raises ValueError if there is a record of another configuration."""
    if not path.exists():
        return
    line = json.loads(path.read_text(encoding="utf-8"))
    settings = config.settings()
    # Earlier records lack some of them.
    recorded_settings = {name: line.get(name, settings[name]) for name in settings}
    for recorded, planned in (
        (current_config(line["config"]), dataclasses.asdict(config.large)),
        (current_config(line["small"]), dataclasses.asdict(config.small)),
        (recorded_settings, settings),
    ):
        changed = changes(recorded, planned)
        if changed:
            raise ValueError(
                f"{path} is the record of another configuration: {changed}; use "
                "another folder"
            )


def swap(path: Path, config: SwapConfig, runner: Runner) -> str:
    """Runs SWAP and leaves its record."""
    try:
        line = record_swap(path, config, runner.dataset(config.large))
    except DivergedError:
        return "diverged"
    return f"test accuracy {line['averaged']['test_accuracy']:.1%}"
