"""The settings of stochastic weight averaging in parallel."""

import dataclasses
from typing import Any, Literal

from experiments.config import RunConfig

Layout = Literal["sequential", "vmap", "mesh"]

LAYOUTS = ("sequential", "vmap", "mesh")


@dataclasses.dataclass(frozen=True)
class SwapConfig:
    """The settings of both phases.

    Attributes:
      large: settings of the first phase; its schedule runs over ``large.epochs``.
      small: settings of each worker, which may differ from ``large`` in everything but
        data and model.
      workers: number of workers in the second phase.
      stop_accuracy: mean accuracy of the batches between two reports at which the first
        phase ends.
      stop_epoch: epoch after which the first phase ends in any case, at the next
        report; None for the end of ``large.epochs``.
      layout: how workers share the devices: one after the other, vectorized on one
        device, or along a mesh axis of all devices.
    """

    large: RunConfig = dataclasses.field(default_factory=RunConfig)
    small: RunConfig = dataclasses.field(
        default_factory=lambda: RunConfig(batch_size=32, epochs=2)
    )
    workers: int = 4
    stop_accuracy: float | None = None
    stop_epoch: int | None = None
    layout: Layout = "sequential"

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers={self.workers!r} must be at least 1")
        if self.layout not in LAYOUTS:
            raise ValueError(
                f"layout={self.layout!r} is unknown; allowed are {list(LAYOUTS)}"
            )
        if self.stop_accuracy is not None and not 0 < self.stop_accuracy <= 1:
            raise ValueError(
                f"stop_accuracy={self.stop_accuracy!r} must be above 0 and at most 1, "
                "or None"
            )
        if self.stop_epoch is not None and self.stop_epoch < 1:
            raise ValueError(
                f"stop_epoch={self.stop_epoch!r} must be at least 1, or None"
            )
        for name in (
            "dataset",
            "model",
            "compute_dtype",
            "train_examples",
            "validation_examples",
            "split_seed",
            "classes",
            "halved_images",
            "standardization",
        ):
            large, small = getattr(self.large, name), getattr(self.small, name)
            if large != small:
                raise ValueError(
                    f"large has {name}={large!r} and small has {name}={small!r}; both "
                    "phases need the same"
                )

    def settings(self) -> dict[str, Any]:
        """The settings of SWAP itself, without those of the runs in its phases."""
        given = dataclasses.asdict(self)
        return {k: v for k, v in given.items() if k not in ("large", "small")}
