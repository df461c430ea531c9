"""The tasks of the study, and on which of them choices may be made.

`Task.chosen_on` is fixed before anything is run: constants of the presets, one setting
for all tasks and the forms that are compared in ablations are chosen on these tasks
only. The others are run once, at the end.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

STEPS = 60


@dataclasses.dataclass(frozen=True)
class Task:
    """Data and model.

    Attributes:
      name: folder of its records.
      settings: fields of `RunConfig`, the same for every run.
      examples: training examples.
      batch_sizes: each a part of the training examples, the smallest first.
      long: step counts of longer runs, with the first batch size.
      chosen_on: whether choices may be made on it.
    """

    name: str
    settings: Mapping[str, Any]
    examples: int
    batch_sizes: tuple[int, ...]
    long: tuple[int, ...] = ()
    chosen_on: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """A task at a batch size and a number of steps.

    Attributes:
      task: data and model.
      batch_size: examples per step.
      steps: length of every run.
    """

    task: Task
    batch_size: int
    steps: int

    @property
    def name(self) -> str:
        """The folder of its records."""
        return f"{self.task.name}/batch{self.batch_size}_steps{self.steps}"

    @property
    def title(self) -> str:
        """The title in tables."""
        return f"{self.task.name}, {self.batch_size}, {self.steps} steps"


def _cifar(classes: int, model: str, examples: int) -> dict[str, Any]:
    found = {
        "dataset": "cifar100",
        "classes": classes,
        "halved_images": True,
        "model": model,
        "train_examples": examples,
        "validation_examples": 1000,
        "augmentation": "crop_flip",
    }
    # XLA is slow at convolutions in loops on a CPU.
    return found | ({"steps_per_call": 1} if model == "cnn_strided" else {})


DIGITS = Task(
    "digits",
    {"dataset": "digits", "model": "mlp", "validation_examples": 0},
    1024,
    (256, 1024),
    chosen_on=True,
)
TASKS = (
    DIGITS,
    Task(
        "ten_classes_convolutions",
        _cifar(10, "cnn_strided", 960),
        960,
        (320, 960),
        (300,),
        chosen_on=True,
    ),
    Task(
        "characters",
        {"dataset": "text", "model": "transformer_small", "train_examples": 960},
        960,
        (16, 64),
        (300,),
        chosen_on=True,
    ),
    Task(
        "hundred_classes_patches",
        _cifar(100, "patches", 7680),
        7680,
        (640, 1920),
        (300,),
        chosen_on=True,
    ),
    Task(
        "autoencoder",
        {"dataset": "digit_pixels", "model": "autoencoder", "validation_examples": 0},
        1024,
        (256, 1024),
        (1000,),
    ),
    Task("twenty_classes_patches", _cifar(20, "patches", 1920), 1920, (480, 1920)),
    Task(
        "twenty_classes_convolutions",
        _cifar(20, "cnn_strided", 1920),
        1920,
        (480, 1920),
    ),
    Task(
        "hundred_classes_convolutions",
        _cifar(100, "cnn_strided", 3840),
        3840,
        (640, 1920),
    ),
    Task(
        "spoken_words",
        {
            "dataset": "spoken_words",
            "model": "mlp",
            "train_examples": 1920,
            "validation_examples": 800,
        },
        1920,
        (480, 1920),
    ),
)
SMALL_TASKS = (
    dataclasses.replace(DIGITS, name="chosen", batch_sizes=(256,)),
    dataclasses.replace(DIGITS, name="fresh", batch_sizes=(512,), chosen_on=False),
)


def places_of(tasks: tuple[Task, ...], steps: int = STEPS) -> list[Place]:
    """Every task at each batch size, then the longer runs."""
    short = [Place(task, size, steps) for task in tasks for size in task.batch_sizes]
    long = [Place(task, task.batch_sizes[0], n) for task in tasks for n in task.long]
    return short + long
