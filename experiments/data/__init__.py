"""Data sets by name."""

import functools
from collections.abc import Callable

from experiments.data.dataset import AnyDataset as AnyDataset
from experiments.data.dataset import Dataset as Dataset
from experiments.data.dataset import Split as Split
from experiments.data.dataset import StreamedDataset as StreamedDataset
from experiments.data.digits import load_digit_pixels, load_digits
from experiments.data.image_sets import IMAGE_SETS
from experiments.data.imagenet import NAME as IMAGENET
from experiments.data.imagenet import load_imagenet
from experiments.data.options import DATA_DIR as DATA_DIR
from experiments.data.options import DataOptions as DataOptions
from experiments.data.prepared import NotPreparedError as NotPreparedError
from experiments.data.small_images import load_small_images
from experiments.data.spoken_words import NAME as SPOKEN_WORDS
from experiments.data.spoken_words import load_spoken_words
from experiments.data.stream import Stream as Stream
from experiments.data.text import load_text
from experiments.registry import look_up

DATASETS: dict[str, Callable[[DataOptions], Dataset]] = {
    "digits": lambda _: load_digits(),
    "digit_pixels": lambda _: load_digit_pixels(),
    "text": load_text,
    SPOKEN_WORDS: load_spoken_words,
    **{
        name: functools.partial(load_small_images, image_set)
        for name, image_set in IMAGE_SETS.items()
    },
}

STREAMED: dict[str, Callable[[DataOptions], StreamedDataset]] = {
    IMAGENET: load_imagenet,
}


def load_or_open(name: str, options: DataOptions) -> AnyDataset:
    """Loads a data set, or opens one that is too large for a device.

    Args:
      name: a name in `DATASETS` or `STREAMED`.
      options: which part of it to use, and where it is stored.

    Raises:
      ValueError: if the name is unknown or an option does not suit the data set.
      NotPreparedError: if it must be prepared first; the message says how.
    """
    known: dict[str, Callable[[DataOptions], AnyDataset]] = {**DATASETS, **STREAMED}
    return look_up("dataset", name, known)(options)


def load(name: str, options: DataOptions | None = None) -> Dataset:
    """Loads a data set.

    Args:
      name: a name in `DATASETS`.
      options: which part of it to use, and where it is stored.

    Raises:
      ValueError: if the name is unknown or streamed, or an option does not suit the
        data set.
      NotPreparedError: if it must be prepared first; the message says how.
    """
    if name in STREAMED:
        raise ValueError(
            f"dataset={name!r} is streamed, which experiments.run supports but this "
            f"command does not; allowed are {sorted(DATASETS)}"
        )
    return look_up("dataset", name, DATASETS)(options or DataOptions())
