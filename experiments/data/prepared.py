"""Loading a prepared image set, in whichever form it is stored.

The error for any data set that cannot be read is here, too.
"""

import importlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.data import arrays_file
from experiments.data.image_sets import ImageSet, LabeledImages
from experiments.errors import UserError


class NotPreparedError(UserError):
    """A data set is missing or incomplete; the message says what to run."""


def not_prepared(
    name: str,
    data_dir: Path,
    error: Exception,
    options: Sequence[str] = (),
    advice: str = "with --source DIRECTORY if you have the files",
) -> NotPreparedError:
    """The error for a data set that cannot be read, with the command to run.

    Args:
      name: name of the data set.
      data_dir: folder of all prepared data sets.
      error: what its storage raised.
      options: options of the command, after the folder.
      advice: text after the command.
    """
    module = "experiments.data.prepare"
    command = shlex.join(
        ["python", "-m", module, name, "--data-dir", str(data_dir), *options]
    )
    return NotPreparedError(
        f"the data set {name!r} is missing or incomplete in {str(data_dir)!r}; run\n"
        f"  {command}\n{advice} ({type(error).__name__}: {error})"
    )


def read_prepared(image_set: ImageSet, data_dir: Path) -> dict[str, LabeledImages]:
    """Reads the splits ``train`` and ``test``.

    They come from the file of arrays if it exists; TensorFlow Datasets is needed only
    if it does not.

    Raises:
      NotPreparedError: if the data set is missing or corrupt.
    """
    if not arrays_file.arrays_path(image_set, data_dir).exists():
        return read_tfds(image_set, data_dir)
    return _read(arrays_file.read, image_set, data_dir, ["--form", "arrays"])


def read_tfds(image_set: ImageSet, data_dir: Path) -> dict[str, LabeledImages]:
    """Reads both splits from the ArrayRecord files, even if a file of arrays exists.

    Raises:
      NotPreparedError: if they are missing or corrupt.
    """

    def read(image_set: ImageSet, data_dir: Path) -> dict[str, LabeledImages]:
        # Imported here so that a machine without it can use the arrays.
        return importlib.import_module("experiments.data.tfds_store").read(
            image_set, data_dir
        )

    return _read(read, image_set, data_dir, [])


def _read(
    read: Callable[[ImageSet, Path], dict[str, LabeledImages]],
    image_set: ImageSet,
    data_dir: Path,
    options: Sequence[str],
) -> dict[str, LabeledImages]:
    try:
        splits = read(image_set, data_dir)
        for images, labels in splits.values():
            if images.shape != (len(labels), *image_set.shape):
                raise ValueError(f"it holds {len(labels)} images of {images.shape}")
    # A corrupt store raises whatever its library does, even a bare RuntimeError.
    except Exception as error:
        advice = (
            "with --source DIRECTORY if you have the files, and with "
            "--form arrays if tensorflow-datasets is not installed"
        )
        raise not_prepared(image_set.name, data_dir, error, options, advice) from error
    return splits
