"""Splits that are too large for a device: batches decoded during training."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from experiments.data.image_sets import LabeledImages

PADDING_LABEL = -1  # of the images that fill the last batch of an evaluation


class Stream(Protocol):
    """A split that is read batch by batch."""

    @property
    def examples(self) -> int:
        """Number of examples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""

    def training_batches(
        self, *, seed: int, first: int, batch_size: int, rows: Sequence[int]
    ) -> Iterator[LabeledImages]:
        """Batches without end; each epoch has every example once, in a new order.

        A row of a batch depends only on ``seed``, the number of the batch and the
        number of the row. So a run resumes by starting at that batch, and any number of
        processes, each with its own rows, read the same batches.

        Args:
          seed: seed of the order and the augmentation.
          first: number of the first batch.
          batch_size: batch size of all processes together.
          rows: the rows of each batch to yield, in increasing order.
        """

    def evaluation_batches(
        self, *, batch_size: int, rows: Sequence[int]
    ) -> Iterator[LabeledImages]:
        """All examples once; the last batch is filled with `PADDING_LABEL`."""
