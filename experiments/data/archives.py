"""Reading the official archives: CIFAR's binary tar files and MNIST's idx files."""

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.data.image_sets import ImageSet, LabeledImages
from experiments.data.tar_files import read_members

CIFAR_MEMBERS = {
    "cifar10": {
        "train": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
        "test": ["cifar-10-batches-bin/test_batch.bin"],
    },
    "cifar100": {
        "train": ["cifar-100-binary/train.bin"],
        "test": ["cifar-100-binary/test.bin"],
    },
}
# A CIFAR-100 record starts with the coarse label, which is not used here.
CIFAR_LABEL_BYTES = {"cifar10": 1, "cifar100": 2}

IDX_UNSIGNED_BYTE = 8


def read_archives(
    image_set: ImageSet, paths: Mapping[str, Path]
) -> dict[str, LabeledImages]:
    """Reads the splits ``train`` and ``test`` from official archives.

    Args:
      image_set: the set to read.
      paths: path of each of ``image_set.archives``.

    Raises:
      ValueError: if a file is corrupt or does not hold what its name says.
    """
    files = [paths[name] for name in image_set.archives]
    if image_set.name in CIFAR_MEMBERS:
        return {
            split: _read_cifar(image_set, files[0], members)
            for split, members in CIFAR_MEMBERS[image_set.name].items()
        }
    train_images, train_labels, test_images, test_labels = map(_read_idx, files)
    return {
        "train": _labeled(image_set, train_images, train_labels),
        "test": _labeled(image_set, test_images, test_labels),
    }


def _read_cifar(
    image_set: ImageSet, path: Path, members: Sequence[str]
) -> LabeledImages:
    height, width, channels = image_set.shape
    label_bytes = CIFAR_LABEL_BYTES[image_set.name]
    try:
        found = {name: raw for name, raw in read_members(path) if name in members}
        raw = b"".join(found[name] for name in members)
        records = np.frombuffer(raw, np.uint8).reshape(
            -1, label_bytes + math.prod(image_set.shape)
        )
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not the official archive of {image_set.name}, or is corrupt: "
            f"{error}"
        ) from error
    images = records[:, label_bytes:].reshape(-1, channels, height, width)
    return LabeledImages(
        np.ascontiguousarray(images.transpose(0, 2, 3, 1)),
        records[:, label_bytes - 1].astype(np.int32),
    )


def _read_idx(path: Path) -> np.ndarray:
    """Reads an idx file: a magic number, the sizes (big endian), then the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
        zeros, kind, dimensions = raw[:2], raw[2], raw[3]
        if zeros != b"\0\0" or kind != IDX_UNSIGNED_BYTE:
            raise ValueError(f"the magic number is {raw[:4].hex()}")
        shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise ValueError(
            f"{path} is not an idx file of bytes, or is corrupt: {error}"
        ) from error


def _labeled(
    image_set: ImageSet, images: np.ndarray, labels: np.ndarray
) -> LabeledImages:
    return LabeledImages(images.reshape(-1, *image_set.shape), labels.astype(np.int32))
