"""Splits that are too large for a device: batches that are decoded while it trains."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from experiments.data.image_sets import LabeledImages

PADDING_LABEL = -1  # of what fills the last batch of an evaluation


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of each batch that one process reads.

    Attributes:
      index: of the process.
      count: of processes, which divides the size of a batch.
    """

    index: int = 0
    count: int = 1


class Stream(Protocol):
    """A split that is read batch by batch."""

    @property
    def examples(self) -> int:
        """How many there are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""

    def training_batches(
        self, *, seed: int, first: int, batch_size: int, share: Share
    ) -> Iterator[LabeledImages]:
        """Batches without an end, every example once an epoch in an order of its own.

        What a batch holds depends on ``seed`` and its number alone: to go on after an
        interruption is to begin at that number, with any number of processes.

        Args:
          seed: of the order and the augmentation.
          first: number of the first batch.
          batch_size: of all processes together.
          share: which part of each batch is yielded.
        """

    def evaluation_batches(
        self, *, batch_size: int, share: Share
    ) -> Iterator[LabeledImages]:
        """All examples once; the last batch is filled with `PADDING_LABEL`."""
