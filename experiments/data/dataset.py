"""What a data set is to the rest of the package."""

from typing import NamedTuple

import jax

from experiments.data.stream import Stream


class Split(NamedTuple):
    """Part of a data set, on the device.

    Attributes:
      images: ``[examples, height, width, channels]``; standardized floats, or raw
        uint8 pixels, which `preprocessing` standardizes in the step. For
        text the numbers of its characters, ``[examples, length]``, int32.
      labels: ``[examples]``, int32; for text ``[examples, length]``.
    """

    images: jax.Array
    labels: jax.Array


class Dataset(NamedTuple):
    """A data set in three splits: to train, to choose, to report once.

    Attributes:
      num_classes: number of different labels.
      train: the examples that are trained on.
      validation: the examples that hyperparameters are chosen on; None if all are
        trained on, for a recipe that leaves nothing to choose.
      test: the examples of the final figure.
    """

    num_classes: int
    train: Split
    validation: Split | None
    test: Split


class StreamedDataset(NamedTuple):
    """A `Dataset` that is read while it is used."""

    num_classes: int
    train: Stream
    validation: Stream | None
    test: Stream


AnyDataset = Dataset | StreamedDataset
