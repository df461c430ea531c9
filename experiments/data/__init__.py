"""Data sets by name."""

import dataclasses
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

RANDOM_SPLITS = ("validation_examples", "train_examples", "split_seed")
# The options that each data set uses.
USED: dict[str, tuple[str, ...]] = {
    "digits": (),
    "digit_pixels": (),
    "text": ("train_examples",),
    SPOKEN_WORDS: RANDOM_SPLITS,
    **dict.fromkeys(IMAGE_SETS, (*RANDOM_SPLITS, "classes", "halved")),
    IMAGENET: (*RANDOM_SPLITS, "image_size", "decode_workers"),
}
# A fixed validation split suits any number of held-out examples.
USED_BY_ALL = ("data_dir", "validation_examples")


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
    loader = look_up("dataset", name, known)
    _check_used(name, options)
    return loader(options)


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
    loader = look_up("dataset", name, DATASETS)
    options = options or DataOptions()
    _check_used(name, options)
    return loader(options)


def _check_used(name: str, options: DataOptions) -> None:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        unused = field.name not in (*USED[name], *USED_BY_ALL)
        if unused and value != field.default:
            setting = "halved_images" if field.name == "halved" else field.name
            raise ValueError(
                f"{setting}={value!r} has no effect with dataset={name!r}; allowed is "
                f"the default, {field.default!r}"
            )
