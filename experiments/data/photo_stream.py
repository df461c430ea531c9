"""Encoded photographs as a stream, decoded by Grain in threads or processes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from experiments.data.crops import central_crop, random_resized_crop
from experiments.data.image_sets import LabeledImages
from experiments.data.stream import PADDING_LABEL

Example = Mapping[str, Any]

WORKER_BATCHES = 2  # decoded in advance by each process


@dataclasses.dataclass(frozen=True)
class PhotoStream:
    """A `Stream` of photographs.

    Attributes:
      source: examples with an encoded ``image``, a ``label`` and a ``file_name``.
      size: height and width of the images that are yielded.
      workers: processes that decode; zero for threads of this process.
    """

    source: Sequence[Example]
    size: int
    workers: int = 0

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.source)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (self.size, self.size, 3)

    def training_batches(
        self, *, seed: int, first: int, batch_size: int, rows: Sequence[int]
    ) -> Iterator[LabeledImages]:
        """Randomly cropped and flipped; see `Stream`."""
        # An example's random numbers depend on its position in the endless sequence.
        examples = (
            grain.MapDataset.source(self.source)
            .seed(seed)
            .shuffle()
            .repeat()
            .random_map(_RandomCrop(self.size))
        )
        return self._batches(examples[first * batch_size :], batch_size, rows)

    def evaluation_batches(
        self, *, batch_size: int, rows: Sequence[int]
    ) -> Iterator[LabeledImages]:
        """Centrally cropped; see `Stream`."""
        padded = _Padded(self.source, batch_size)
        examples = grain.MapDataset.source(padded).map(_CentralCrop(self.size))
        return self._batches(examples, batch_size, rows)

    def _batches(
        self, examples: grain.MapDataset, batch_size: int, rows: Sequence[int]
    ) -> Iterator[LabeledImages]:
        mine, size = _Rows(examples, batch_size, rows), len(rows)
        if self.workers:
            if not flags.FLAGS.is_parsed():  # Grain reads flags of a command line
                flags.FLAGS.mark_as_parsed()
            # Workers make whole batches, so that these are the same as without them.
            batches = mine.batch(size, drop_remainder=True).to_iter_dataset(
                grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
            )
            dataset = batches.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self.workers, per_worker_buffer_size=WORKER_BATCHES
                )
            )
        else:
            dataset = mine.to_iter_dataset().batch(size, drop_remainder=True)
        for batch in dataset:
            yield LabeledImages(batch["image"], batch["label"])


class _RandomCrop(grain.transforms.RandomMap):
    def __init__(self, size: int):
        self._size = size

    def random_map(self, element: Example, rng: np.random.Generator) -> Example:
        return _decoded(element, lambda x: random_resized_crop(x, self._size, rng))


class _CentralCrop(grain.transforms.Map):
    def __init__(self, size: int):
        self._size = size

    def map(self, element: Example) -> Example:
        if not element:
            image = np.zeros([self._size, self._size, 3], np.uint8)
            return {"image": image, "label": np.int32(PADDING_LABEL)}
        return _decoded(element, lambda x: central_crop(x, self._size))


class _Rows(grain.MapDataset):
    """The given rows of each batch, one batch after another."""

    def __init__(
        self, examples: grain.MapDataset, batch_size: int, rows: Sequence[int]
    ):
        super().__init__(examples)
        self._examples = examples
        self._batch_size = batch_size
        self._rows = rows

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        batch, place = divmod(index, len(self._rows))
        return self._examples[batch * self._batch_size + self._rows[place]]


class _Padded:
    """The examples, followed by empty ones up to the end of the last batch."""

    def __init__(self, source: Sequence[Example], batch_size: int):
        self._source = source
        self._length = -(-len(source) // batch_size) * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Example:
        return self._source[row] if row < len(self._source) else {}


def _decoded(element: Example, crop: Any) -> Example:
    try:
        image = crop(element["image"])
    except OSError as error:
        raise ValueError(
            f"the image {element['file_name']!r} cannot be decoded: {error}"
        ) from error
    return {"image": image, "label": np.int32(element["label"])}
