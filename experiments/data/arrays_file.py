"""Image sets as one file of NumPy arrays, which NumPy alone can read."""

import os
from pathlib import Path

import numpy as np

from experiments.data.files_at_hand import SPLITS
from experiments.data.image_sets import ImageSet, LabeledImages


def arrays_path(image_set: ImageSet, data_dir: Path) -> Path:
    """Path of the file of an image set."""
    return data_dir / f"{image_set.name}.npz"


def write(
    image_set: ImageSet, data_dir: Path, splits: dict[str, LabeledImages]
) -> None:
    """Writes both splits atomically: a reader sees the whole file or none."""
    arrays = {
        f"{split}_{kind}": array
        for split in SPLITS
        for kind, array in splits[split]._asdict().items()
    }
    write_arrays(arrays_path(image_set, data_dir), arrays)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays to an npz file atomically, in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    incomplete = path.with_suffix(f".incomplete{os.getpid()}")
    try:
        with incomplete.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        incomplete.replace(path)
    finally:
        incomplete.unlink(missing_ok=True)


def read(image_set: ImageSet, data_dir: Path) -> dict[str, LabeledImages]:
    """Reads both splits.

    Raises:
      Exception: of whatever type NumPy raises, if the file is missing or corrupt.
    """
    path = arrays_path(image_set, data_dir)
    # NumPy does not close a corrupt file that it opened itself.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {
            split: LabeledImages(arrays[f"{split}_images"], arrays[f"{split}_labels"])
            for split in SPLITS
        }
