"""ImageNet as a streamed data set."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.data.dataset import StreamedDataset
from experiments.data.options import DataOptions
from experiments.data.prepared import not_prepared

NAME = "imagenet2012"


class Rows:
    """Some rows of a source, each of which is read when it is accessed."""

    def __init__(self, source: Sequence[Any], rows: np.ndarray):
        self._source = source
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:
        return self._source[int(self._rows[row])]


def load_imagenet(options: DataOptions) -> StreamedDataset:
    """Opens ImageNet (ILSVRC 2012), whose validation split is the test split here.

    The training images are permuted by ``options.split_seed``; the first ones are held
    out for validation and the following ones are used for training.

    Raises:
      NotPreparedError: if the data set is missing or incomplete.
      ValueError: if it is too small for the options.
    """
    try:
        # Imported here so that nothing else needs tensorflow-datasets and grain.
        store = importlib.import_module("experiments.data.imagenet_store")
        photos = importlib.import_module("experiments.data.photo_stream")
        training = store.open_split(options.data_dir, "train")
        validation = store.open_split(options.data_dir, "validation")
        num_classes = store.num_classes(options.data_dir)
    # A corrupt store raises whatever its library does, even a bare RuntimeError.
    except Exception as error:
        source, advice = ["--source", "DIRECTORY"], "with the archives in DIRECTORY"
        raise not_prepared(NAME, options.data_dir, error, source, advice) from error
    held_out, trained_on = options.split(len(training), NAME)

    def stream(source: Any) -> Any:
        return photos.PhotoStream(source, options.image_size, options.decode_workers)

    return StreamedDataset(
        num_classes=num_classes,
        train=stream(Rows(training, trained_on)),
        validation=stream(Rows(training, held_out)) if len(held_out) else None,
        test=stream(validation),
    )
