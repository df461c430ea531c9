"""The settings of one training run: a frozen dataclass, also the command line."""

import dataclasses
import math
from typing import Any

MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run.

    Attributes:
      dataset: a name in `experiments.data.DATASETS`.
      model: a name in `experiments.models.MODELS`.
      optimizer: a name in `experiments.optimizers.OPTIMIZERS`.
      learning_rate: peak of the schedule.
      optimizer_options: further numbers for the optimiser, such as ``momentum``.
      schedule: a name in `experiments.schedules.SCHEDULES`.
      batch_size: examples a step; None for the whole training set.
      epochs: passes over the training set.
      epochs_per_report: epochs in one compiled call, after which the run is
        evaluated and reported; divides ``epochs``.
      l2: the loss holds ``l2 / 2`` times the sum of squared weights.
      seed: of the initial weights and the order of the data.
    """

    dataset: str = "digits"
    model: str = "mlp"
    optimizer: str = "nlcg_pr+_rms"
    learning_rate: float = 1e-3
    optimizer_options: dict[str, int | float] = dataclasses.field(default_factory=dict)
    schedule: str = "constant"
    batch_size: int | None = 256
    epochs: int = 20
    epochs_per_report: int = 1
    l2: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
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
        for name in ("batch_size", "epochs", "epochs_per_report"):
            value = getattr(self, name)
            optional = name == "batch_size" and value is None
            _require(
                name,
                value,
                optional or (_is_int(value) and value >= 1),
                "must be an integer of at least 1",
            )
        _require(
            "epochs_per_report",
            self.epochs_per_report,
            self.epochs % self.epochs_per_report == 0,
            f"must divide epochs={self.epochs}",
        )
        _require(
            "seed",
            self.seed,
            _is_int(self.seed) and 0 <= self.seed <= MAX_SEED,
            f"must be an integer from 0 to {MAX_SEED}",
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(name: str, value: Any, fulfilled: bool, allowed: str) -> None:
    if not fulfilled:
        raise ValueError(f"{name}={value!r} {allowed}")
