"""The types by which the rest of the experiments sees a data set."""

from typing import NamedTuple

import jax

from experiments.data.stream import Stream


class Split(NamedTuple):
    """Part of a data set, on the device.

    Attributes:
      images: ``[examples, height, width, channels]``; standardized floats, or raw
        uint8 pixels, which `preprocessing` standardizes in the step. For spoken words,
        time and mel bands are height and width. For text, the character codes,
        ``[examples, length]``, int32.
      labels: ``[examples]``, int32; for text, ``[examples, length]``.
    """

    images: jax.Array
    labels: jax.Array


class Dataset(NamedTuple):
    """A data set in three splits.

    Attributes:
      num_classes: number of different labels.
      train: examples to train on.
      validation: examples to choose hyperparameters on; None if all are used for
        training, for a recipe without hyperparameters to choose.
      test: examples for the final result, to be evaluated once.
    """

    num_classes: int
    train: Split
    validation: Split | None
    test: Split


class StreamedDataset(NamedTuple):
    """A `Dataset` that is read from storage during training."""

    num_classes: int
    train: Stream
    validation: Stream | None
    test: Stream


AnyDataset = Dataset | StreamedDataset
