"""What is run: tasks, methods, how they are tuned, and in which order."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.config import RunConfig

Options = Mapping[str, Any]

SMOOTHED = {"beta_smoothing": 0.9, "beta_max": 0.95}
MOMENTA = (0.8, 0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimiser and what is tuned of it.

    Attributes:
      optimizer: a name in `experiments.optimizers.OPTIMIZERS`.
      centre: of the grid of learning rates.
      options: that stay.
      momentum: name of the option that is tuned as well, over `MOMENTA`; None for
        methods whose only number is the learning rate.
      tuned: whether anything is; otherwise the learning rate is the centre.
      schedule: of the learning rate, a name in `experiments.schedules.SCHEDULES`.
    """

    optimizer: str
    centre: float
    options: Options = dataclasses.field(default_factory=dict)
    momentum: str | None = None
    tuned: bool = True
    schedule: str = "linear"

    def variants(self) -> list[Options]:
        """The options to be tried."""
        if self.momentum is None:
            return [dict(self.options)]
        return [{**self.options, self.momentum: value} for value in MOMENTA]


@dataclasses.dataclass(frozen=True)
class Task:
    """Data and model.

    Attributes:
      name: folder of its records.
      settings: of every run, out of those of `RunConfig`.
      examples: training images.
      batches: divisors of the training set that give the batch sizes.
      methods: that are compared at each of them.
    """

    name: str
    settings: Mapping[str, Any]
    examples: int
    batches: tuple[int, ...]
    methods: tuple[Method, ...]


# The strongest first, so that a study that is stopped has most of its answer.
BASELINES = (
    Method("shampoo", 0.01, momentum="momentum"),
    Method("muon", 0.15, momentum="momentum"),
    Method("nesterov", 0.4, momentum="momentum"),
    Method("adam", 0.03, momentum="b1"),
    Method("lamb", 0.06, {"weight_decay": 0.0}, momentum="b1"),
    Method("lbfgs", 1.2),
    Method("sgd", 2.0),
    Method("lars", 5.0, {"weight_decay": 0.0}, momentum="momentum"),
)
NLCG = tuple(
    Method(f"nlcg_{rule}{preconditioner}", centre)
    for preconditioner, centre in (
        ("_kronecker", 0.01),
        ("_orthogonal", 0.07),
        ("_rms", 0.01),
        ("", 1.2),
    )
    for rule in ("pr+", "fr", "hs")
)
SMOOTH = tuple(
    Method(f"nlcg_pr+{preconditioner}", centre, SMOOTHED)
    for preconditioner, centre in (
        ("_kronecker", 0.01),
        ("_orthogonal", 0.05),
        ("_rms", 0.01),
    )
)
CURVATURE_STEP = {**SMOOTHED, "curvature_period": 1}
TUNING_FREE = (
    Method("nlcg_pr+_orthogonal", 1.0, CURVATURE_STEP, tuned=False),
    Method("nlcg_pr+_kronecker", 1.0, CURVATURE_STEP, tuned=False),
    Method("nlcg_subspace_orthogonal", 1.0, tuned=False, schedule="constant"),
    Method("nlcg_subspace_kronecker", 1.0, tuned=False, schedule="constant"),
)
# What keeps noise out of beta, with one preconditioner for all.
NOISE = (
    Method("nlcg_pr+_orthogonal", 0.07),
    Method("nlcg_pr+_orthogonal", 0.05, SMOOTHED),
    Method("nlcg_pr+_orthogonal", 0.07, {"beta_max": 0.9}),
    Method("nlcg_constant_orthogonal", 0.05, {"beta": 0.9}),
    Method("nlcg_fr_orthogonal", 0.05, SMOOTHED),
    Method("nlcg_pr+_orthogonal", 0.07, {"across_halves": 1, "beta_smoothing": 0.9}),
    Method("nlcg_daniel_orthogonal", 0.07, {"beta_smoothing": 0.9}),
    Method("nlcg_pr+_orthogonal", 0.07, {"across_halves": 1}),
    Method("nlcg_daniel_orthogonal", 0.07),
    Method("nlcg_pr+_orthogonal", 0.07, {"beta_smoothing": 0.9}),
    *(Method(f"nlcg_{rule}_orthogonal", 0.07) for rule in ("fr", "hs")),
)
# The default of `nlcg` is decided by what it does without a matrix preconditioner, too.
NOISE_DEFAULTS = tuple(
    Method(f"nlcg_pr+{preconditioner}", centre, options)
    for preconditioner, centre in (("", 1.2), ("_rms", 0.01))
    for options in ({}, {"beta_smoothing": 0.9}, {"beta_max": 0.9}, SMOOTHED)
)
# Curvature sampled at every step: on CPUs convolutions are slow inside conditionals.
DIAGONALS = tuple(
    Method(f"nlcg_pr+_{preconditioner}", 0.1, {**SMOOTHED, "refresh_period": 1})
    for preconditioner in ("hutchinson", "equilibration", "bartlett", "secant")
)
# The optimum of β found by itself, to be compared with its mean and with its replay.
ABLATED = Method("nlcg_pr+_orthogonal", 0.05, SMOOTHED)
# For tasks that nothing was developed on: the strongest peers and what needs no number.
TRANSFER = (
    Method("shampoo", 0.01, momentum="momentum"),
    Method("muon", 0.05, momentum="momentum"),
    Method("nesterov", 0.2, momentum="momentum"),
    Method("nlcg_pr+_kronecker", 0.01, SMOOTHED),
    Method("nlcg_pr+_orthogonal", 0.05, SMOOTHED),
    *TUNING_FREE,
)

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


@dataclasses.dataclass(frozen=True)
class Study:
    """How much is run.

    Attributes:
      tasks: in their order.
      ablated: the task whose β is compared with its mean and its replay, or None.
      steps: of every run.
      grid_points: learning rates of each variant of a method at first.
      grid_factor: between neighbours.
      grid_extensions: how often the grids of a batch size may grow, all together.
      search_seed: of the trials.
      final_seeds: of what is reported.
    """

    tasks: tuple[Task, ...]
    ablated: str | None = "main"
    steps: int = 60
    grid_points: int = 5
    grid_factor: float = 2.0
    grid_extensions: int = 1
    search_seed: int = 0
    final_seeds: tuple[int, ...] = (10, 11, 12)


def full_study(*, with_images: bool) -> Study:
    """The study; on digits alone where CIFAR-100 is not prepared."""
    first = TEN_CLASSES if with_images else DIGITS_CNN
    examples = 960 if with_images else 1024
    parts = (1, 3) if with_images else (1, 4)
    noise_parts = (1, 3, 12) if with_images else (1, 4, 16)
    halves = {**first, "micro_batches": 2}
    digits = Task("transfer_digits", DIGITS, 1024, (1, 4), TRANSFER)
    others = Task("transfer_twenty", TWENTY_CLASSES, 960, (1, 3), TRANSFER)
    return Study(
        tasks=(
            Task(
                "main",
                first,
                examples,
                parts,
                (*BASELINES[:2], *SMOOTH, *TUNING_FREE, *BASELINES[2:], *NLCG),
            ),
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
    methods = (
        Method("muon", 0.05, momentum="momentum"),
        Method("nlcg_pr+_orthogonal", 0.02, SMOOTHED),
    )
    return Study(
        tasks=(
            Task("main", {**DIGITS, "model": "mlp"}, 1024, (4,), methods),
            Task(
                "noise",
                {**DIGITS, "micro_batches": 2},
                1024,
                (8,),
                (Method("nlcg_pr+_orthogonal", 0.02, {"across_halves": 1}),),
            ),
        ),
        steps=8,
        grid_points=2,
        grid_extensions=1,
        final_seeds=(10, 11),
    )


def config_of(
    study: Study,
    task: Task,
    divisor: int,
    method: Method,
    *,
    options: Options,
    learning_rate: float,
    seed: int,
) -> RunConfig:
    """The configuration of a run."""
    batch_size = None if divisor == 1 else task.examples // divisor
    epochs = study.steps // divisor
    return RunConfig(
        **task.settings,
        optimizer=method.optimizer,
        optimizer_options=dict(options),
        learning_rate=learning_rate,
        schedule=method.schedule,
        batch_size=batch_size,
        epochs=epochs,
        epochs_per_report=epochs,
        steps_per_call=1,  # for convolutions on CPUs
        seed=seed,
    )
