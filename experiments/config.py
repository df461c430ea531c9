"""The settings of one training run, a frozen dataclass that is also a command line."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from experiments.choices import one_of, options_of_optimizers, with_note
from experiments.data import DATASETS, STREAMED
from experiments.data.options import DataOptions
from experiments.data.preprocessing import AUGMENTATIONS, STANDARDIZATIONS
from experiments.models import DTYPES, MODELS
from experiments.optimizers import OPTIMIZERS, build
from experiments.registry import look_up
from experiments.schedules import SCHEDULES

MAX_SEED = 2**31 - 1
POSITIVE = (
    "batch_size",
    "micro_batches",
    "ghost_batch_size",
    "epochs",
    "epochs_per_report",
    "steps_per_call",
    "data_devices",
    "shard_devices",
    "train_examples",
    "classes",
    "image_size",
)
OPTIONAL = (
    "batch_size",
    "classes",
    "data_devices",
    "ghost_batch_size",
    "shard_devices",
    "steps_per_call",
    "train_examples",
)
# Where work is done, which may change when a run is resumed.
LAYOUT = (
    "axis_types",
    "data_devices",
    "decode_workers",
    "micro_batch_loop",
    "shard_devices",
)
CHOICES = {
    "axis_types": ("auto", "explicit"),
    "partitioning": ("jit", "shard_map"),
    "gradient_dtype": ("float32", "bfloat16"),
    "micro_batch_loop": ("auto", "host", "compiled"),
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run.

    Attributes:
      dataset: name of the data set.
      model: name of the model.
      optimizer: name of the optimizer; ``my_module:my_name`` for one that the module
        ``my_module`` registers, see ``CONTRIBUTING.md``.
      learning_rate: peak of the schedule.
      optimizer_options: options of the optimizer by name, such as ``momentum 0.9``; for
        ``nlcg`` those of its rule, preconditioner and step as well.
      schedule: name of the learning-rate schedule.
      warmup_epochs: epochs in which the learning rate rises to its peak; None for the
        schedule's own warm-up, which only the paper's schedule has.
      batch_size: examples per step; None for the whole training set.
      micro_batches: parts of a batch that are computed one after the other; a step
        takes the mean of their losses and gradients.
      micro_batch_loop: where the loop over micro-batches runs. ``host``: small programs
        that serve any number of micro-batches. ``compiled``: one program, which also
        serves optimizers that evaluate functions of the whole batch, and several runs
        in one call. ``auto``: on the host if there is one CPU device and the optimizer
        allows it, and only one run.
      ghost_batch_size: examples that batch normalization sees together, a divisor of a
        micro-batch; None for a whole micro-batch.
      epochs: passes over the training set. Up to a report a run takes as many steps as
        whole batches fit into ``epochs_per_report`` passes, at least one; the rest is
        lost. In total it takes ``epochs / epochs_per_report`` times as many.
      epochs_per_report: epochs between two evaluations; divides ``epochs``.
      steps_per_call: steps per compiled call, None for all up to a report; use 1 for
        convolutions on a CPU, which XLA runs slowly in loops.
      l2: factor of the penalty, ``l2 / 2`` times the sum of squared weights.
      label_smoothing: share of the training target that is spread over all classes.
      ema_decay: decay of an exponential average of the weights, which evaluation then
        uses: ``min(ema_decay, (1 + t) / (10 + t))`` at step t; zero to evaluate the
        weights themselves.
      augmentation: name of the augmentation of training images.
      standardization: name of the standardization of raw pixels.
      image_size: side of the images of a streamed data set, in pixels.
      decode_workers: processes that decode a streamed data set; zero for threads.
      compute_dtype: dtype in which the model computes.
      data_devices: devices along the mesh axis that holds copies of the parameters;
        None for as many as there are.
      shard_devices: devices along the axis over which parameters and the state of the
        optimizer are split: 1 for data parallelism, None with ``data_devices=1`` for
        full sharding, anything else for a hybrid. A batch is split over both axes.
      axis_types: whether array types show the sharding (``explicit``) or not.
      partitioning: ``jit``, where the compiler splits the step and batch normalization
        sees the whole batch, or ``shard_map``, where it sees the part of one device.
      gradient_dtype: dtype in which devices exchange gradients under ``shard_map``;
        under ``jit`` the compiler chooses, and may exchange gradients of a bfloat16
        computation in bfloat16.
      train_examples: number of training images, None for all that remain.
      classes: only labels below this number are used, None for all. This and
        ``halved_images`` are for small image sets only: a setting that a data set does
        not use must be the default.
      halved_images: whether images have half their height and width.
      validation_examples: training images that are held out; digits and text have a
        fixed validation split.
      split_seed: seed of the choice of training and validation images.
      seed: seed of the initial weights, the order of the data and the augmentation.
    """

    dataset: Annotated[str, one_of((*DATASETS, *STREAMED))] = "digits"
    model: Annotated[str, one_of(MODELS)] = "mlp"
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "nlcg"
    learning_rate: float = 0.1
    optimizer_options: Annotated[
        dict[str, int | float | bool | str | None], with_note(options_of_optimizers)
    ] = dataclasses.field(default_factory=dict)
    schedule: Annotated[str, one_of(SCHEDULES)] = "constant"
    warmup_epochs: float | None = None
    batch_size: int | None = 256
    micro_batches: int = 1
    micro_batch_loop: Annotated[str, one_of(CHOICES["micro_batch_loop"])] = "auto"
    ghost_batch_size: int | None = None
    epochs: int = 20
    epochs_per_report: int = 1
    steps_per_call: int | None = None
    l2: float = 0.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    augmentation: Annotated[str, one_of(AUGMENTATIONS)] = "none"
    standardization: Annotated[str, one_of(STANDARDIZATIONS)] = "image"
    image_size: int = 224
    decode_workers: int = 0
    compute_dtype: Annotated[str, one_of(DTYPES)] = "float32"
    data_devices: int | None = None
    shard_devices: int | None = 1
    axis_types: Annotated[str, one_of(CHOICES["axis_types"])] = "auto"
    partitioning: Annotated[str, one_of(CHOICES["partitioning"])] = "jit"
    gradient_dtype: Annotated[str, one_of(CHOICES["gradient_dtype"])] = "float32"
    train_examples: int | None = None
    classes: int | None = None
    halved_images: bool = False
    validation_examples: int = 5000
    split_seed: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            _require(
                name,
                value,
                (name in OPTIONAL and value is None) or (_is_int(value) and value >= 1),
                "must be an integer of at least 1",
            )
        for name in ("validation_examples", "decode_workers"):
            value = getattr(self, name)
            _require(
                name,
                value,
                _is_int(value) and value >= 0,
                "must be an integer of at least 0",
            )
        for name in ("seed", "split_seed"):
            value = getattr(self, name)
            _require(
                name,
                value,
                _is_int(value) and 0 <= value <= MAX_SEED,
                f"must be an integer from 0 to {MAX_SEED}",
            )
        self._check_numbers()
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            _require(name, value, value in choices, f"must be one of {choices}")
        _require(
            "gradient_dtype",
            self.gradient_dtype,
            self.gradient_dtype == "float32" or self.partitioning == "shard_map",
            "needs partitioning='shard_map'; under 'jit' the compiler chooses",
        )

    def _check_numbers(self) -> None:
        _require(
            "learning_rate",
            self.learning_rate,
            self.learning_rate > 0 and math.isfinite(self.learning_rate),
            "must be finite and greater than 0",
        )
        _require(
            "l2",
            self.l2,
            self.l2 >= 0 and math.isfinite(self.l2),
            "must be finite and not below 0",
        )
        for name in ("ema_decay", "label_smoothing"):
            value = getattr(self, name)
            _require(name, value, 0 <= value < 1, "must be at least 0 and below 1")
        _require(
            "warmup_epochs",
            self.warmup_epochs,
            self.warmup_epochs is None or 0 <= self.warmup_epochs < self.epochs,
            f"must be at least 0 and below epochs={self.epochs}, or None",
        )
        _require(
            "epochs_per_report",
            self.epochs_per_report,
            self.epochs % self.epochs_per_report == 0,
            f"must divide epochs={self.epochs}",
        )

    def check_names(self) -> None:
        """Refuses unknown names, and options that the optimizer does not take.

        Raises:
          ValueError: the message lists what is allowed.
        """
        for name, registry in (
            ("dataset", {**DATASETS, **STREAMED}),
            ("model", MODELS),
            ("schedule", SCHEDULES),
            ("augmentation", AUGMENTATIONS),
            ("standardization", STANDARDIZATIONS),
            ("compute_dtype", DTYPES),
        ):
            look_up(name, getattr(self, name), registry)
        build(self.optimizer, self.learning_rate, self.optimizer_options)

    def settings(self) -> dict[str, Any]:
        """All that must be the same when a run is resumed: not where work is done."""
        given = dataclasses.asdict(self)
        return {name: value for name, value in given.items() if name not in LAYOUT}

    def data_options(self, data_dir: Path) -> DataOptions:
        """The part of the data set that is used, and the folder that holds it."""
        return DataOptions(
            data_dir=data_dir,
            validation_examples=self.validation_examples,
            train_examples=self.train_examples,
            classes=self.classes,
            halved=self.halved_images,
            split_seed=self.split_seed,
            image_size=self.image_size,
            decode_workers=self.decode_workers,
        )


def changes(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The settings that differ, such as ``batch_size=128 was 256``; empty if none do.

    A setting that one of the two lacks counts as None there, and differs.
    """
    return ", ".join(
        f"{name}={given.get(name)!r} was {saved.get(name)!r}"
        for name in {**saved, **given}
        if name not in saved or name not in given or saved[name] != given[name]
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(name: str, value: Any, fulfilled: bool, allowed: str) -> None:
    if not fulfilled:
        raise ValueError(f"{name}={value!r} {allowed}")
