"""Splits that are too large for a device: batches decoded during training."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from experiments.data.image_sets import LabeledImages

PADDING_LABEL = -1  # of the images that fill the last batch of an evaluation


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of each batch that one process reads.

    Attributes:
      index: index of the process.
      count: number of processes, a divisor of the batch size.
    """

    index: int = 0
    count: int = 1


class Stream(Protocol):
    """A split that is read batch by batch."""

    @property
    def examples(self) -> int:
        """Number of examples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""

    def training_batches(
        self, *, seed: int, first: int, batch_size: int, share: Share
    ) -> Iterator[LabeledImages]:
        """Batches without end; each epoch has every example once, in a new order.

        The content of a batch depends only on ``seed`` and the number of the batch. So
        a run resumes by starting at that number, with any number of processes.

        Args:
          seed: seed of the order and the augmentation.
          first: number of the first batch.
          batch_size: batch size of all processes together.
          share: the part of each batch to yield.
        """

    def evaluation_batches(
        self, *, batch_size: int, share: Share
    ) -> Iterator[LabeledImages]:
        """All examples once; the last batch is filled with `PADDING_LABEL`."""
