"""What is run: tasks, methods, how they are tuned, and in which order."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import RunConfig
from experiments.studies.fewstep.methods import (
    ABLATED,
    BASELINES,
    DIAGONALS,
    NLCG,
    NOISE,
    NOISE_DEFAULTS,
    SMALL,
    SMALL_NOISE,
    SMOOTH,
    TRANSFER,
    TUNING_FREE,
    Candidate,
    ablations,
)
from experiments.tuning.jobs import Job
from experiments.tuning.samplers import grid
from experiments.tuning.study import Stage, sweep_stage
from experiments.tuning.sweep import Method, Sweep, final_records, rounds, with_choice


@dataclasses.dataclass(frozen=True)
class Task:
    """Data and model.

    Attributes:
      name: folder of its records.
      settings: fields of `RunConfig`, the same for every run.
      examples: training images.
      parts: divisors of the training set that give the batch sizes.
      candidates: methods that are compared at each of them.
    """

    name: str
    settings: Mapping[str, Any]
    examples: int
    parts: tuple[int, ...]
    candidates: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """How much is run.

    Attributes:
      tasks: tasks in their order.
      steps: length of every run.
      points: initial number of learning rates of each search.
      factor: ratio of neighboring learning rates.
      extensions: how often the searches of a batch size may be extended.
      final_seeds: seeds of the runs that are reported.
    """

    tasks: tuple[Task, ...]
    steps: int = 60
    points: int = 5
    factor: float = 2.0
    extensions: int = 1
    final_seeds: tuple[int, ...] = (10, 11, 12)


TEN_CLASSES = {
    "dataset": "cifar100",
    "classes": 10,
    "halved_images": True,
    "model": "cnn_strided",
    "train_examples": 960,
    "validation_examples": 1000,
    "augmentation": "crop_flip",
    "l2": 2e-4,
}
TWENTY_CLASSES = {**TEN_CLASSES, "classes": 20, "model": "mlp"}
DIGITS = {"dataset": "digits", "model": "mlp", "validation_examples": 0, "l2": 2e-4}
DIGITS_CNN = {**DIGITS, "model": "cnn_strided"}


def full_study(*, with_images: bool) -> Study:
    """The study; on digits alone if CIFAR-100 is not prepared."""
    first = TEN_CLASSES if with_images else DIGITS_CNN
    examples = 960 if with_images else 1024
    parts = (1, 3) if with_images else (1, 4)
    noise_parts = (1, 3, 12) if with_images else (1, 4, 16)
    halves = {**first, "micro_batches": 2}
    digits = Task("transfer_digits", DIGITS, 1024, (1, 4), TRANSFER)
    others = Task("transfer_twenty", TWENTY_CLASSES, 960, (1, 3), TRANSFER)
    main = (*BASELINES[:2], *SMOOTH, *TUNING_FREE, *BASELINES[2:], *NLCG)
    return Study(
        tasks=(
            Task("main", first, examples, parts, main),
            Task("noise", halves, examples, noise_parts, NOISE),
            digits,
            *([others] if with_images else []),
            Task("noise_defaults", first, examples, noise_parts, NOISE_DEFAULTS),
            Task("diagonals", first, examples, parts[1:], DIAGONALS),
        ),
        steps=60 if with_images else 64,
    )


def small_study() -> Study:
    """A few methods for a few steps on digits, to see that everything runs."""
    halves = {**DIGITS, "micro_batches": 2}
    return Study(
        tasks=(
            Task("main", DIGITS, 1024, (4,), SMALL),
            Task("noise", halves, 1024, (8,), SMALL_NOISE),
        ),
        steps=8,
        points=2,
        final_seeds=(10, 11),
    )


def sweep_of(
    study: Study, task: Task, part: int, candidates: Sequence[Candidate]
) -> Sweep:
    """The comparison of some methods at a batch size of a task.

    Runs are judged by the training loss: the validation loss would choose smaller rates
    for methods that fit the images, and hold them back.
    """
    epochs = study.steps // part
    methods = []
    for candidate in candidates:
        config = RunConfig(
            **task.settings,
            learning_rate=candidate.center,
            schedule=candidate.schedule,
            batch_size=None if part == 1 else task.examples // part,
            epochs=epochs,
            epochs_per_report=epochs,
            steps_per_call=1,  # for convolutions on CPUs
        )
        searches = grid(
            candidate.center, study.points, study.factor, candidate.variants()
        )
        methods.append(
            Method(
                with_choice(config, candidate.choice),
                searches if candidate.tuned else (),
            )
        )
    return Sweep(
        tuple(methods),
        extensions=study.extensions,
        factor=study.factor,
        final_seeds=study.final_seeds,
        criterion="train_loss",
    )


def stages(study: Study, out: Path) -> list[Stage]:
    """All of the study, in its order."""
    found = []
    for task in study.tasks:
        for part in task.parts:
            folder = out / task.name / f"part{part}"
            sweep = sweep_of(study, task, part, task.candidates)
            found.append(sweep_stage(sweep, folder))
            if is_ablated(task):
                found.append(_ablation_stage(study, task, part, folder))
    return found


def is_ablated(task: Task) -> bool:
    """Whether the adaptive β is compared with its mean and its replay."""
    return task.name == "main" and ABLATED in task.candidates


def _ablation_stage(study: Study, task: Task, part: int, folder: Path) -> Stage:
    def later() -> Iterator[Sequence[Job]]:
        sweep = ablation_sweep(study, task, part, folder)
        if sweep is not None:
            yield from rounds(sweep, folder)

    most = sweep_of(study, task, part, ablations([0.5] * study.steps, 0.5)).most_runs
    return Stage(most, later)


def ablation_sweep(study: Study, task: Task, part: int, folder: Path) -> Sweep | None:
    """`ABLATED` with the median over seeds of its β: replayed, and as its mean.

    None if all of its runs diverged.
    """
    records = final_records(sweep_of(study, task, part, [ABLATED]), folder)
    found = [r.series("beta") for r in records if r.summary is not None]
    if not found:
        return None
    betas = [round(float(beta), 4) for beta in np.median(found, axis=0)]
    mean = round(statistics.fmean(betas), 3)
    return sweep_of(study, task, part, ablations(betas, mean))
