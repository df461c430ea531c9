"""Reading image sets stored as npz parts: columns of images as lossless WebP.

A part holds ``webp`` (the concatenated files, uint8), ``offsets`` (where each file
begins and ends), ``shape`` (height, width, channels), ``labels``, and ``raw_sha256``,
the checksum of the decoded images. A split is one file ``NAME_SPLIT.npz``, or the files
``NAME_SPLIT_partIofN.npz`` for I from 0 to N - 1.
"""

import hashlib
import io
import itertools
import re
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.data.image_sets import ImageSet, LabeledImages

MODES = {1: "L", 3: "RGB"}  # Pillow's, by number of channels


def find_parts(image_set: ImageSet, split: str, folder: Path) -> list[Path]:
    """The parts of a split in order; an empty list unless all of them exist."""
    whole = folder / f"{image_set.name}_{split}.npz"
    if whole.exists():
        return [whole]
    pattern = re.compile(rf"{image_set.name}_{split}_part(\d+)of(\d+)\.npz")
    found = {}
    for path in folder.iterdir():
        if match := pattern.fullmatch(path.name):
            found[int(match[1])] = (path, int(match[2]))
    counts = {count for _, count in found.values()}
    if len(counts) != 1 or set(found) != set(range(max(counts))):
        return []
    return [found[part][0] for part in sorted(found)]


def read_parts(image_set: ImageSet, paths: list[Path]) -> LabeledImages:
    """Reads and concatenates the parts of a split.

    Raises:
      ValueError: if a part is corrupt or holds images of another shape.
    """
    parts = [_read_part(image_set, path) for path in paths]
    images, labels = zip(*parts, strict=True)
    return LabeledImages(np.concatenate(images), np.concatenate(labels))


def _read_part(image_set: ImageSet, path: Path) -> LabeledImages:
    try:
        # NumPy does not close a corrupt file that it opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
            shape = tuple(int(size) for size in part["shape"])
            if shape != image_set.shape:
                raise ValueError(f"it holds images of shape {shape}")
            webp, offsets = part["webp"].tobytes(), part["offsets"]
            labels = part["labels"].astype(np.int32)
            expected = str(part["raw_sha256"])
        columns = [
            np.asarray(
                Image.open(io.BytesIO(webp[start:end])).convert(MODES[shape[2]])
            ).reshape(-1, *shape)
            for start, end in itertools.pairwise(offsets)
        ]
        images = np.concatenate(columns)
        if hashlib.sha256(images.tobytes()).hexdigest() != expected:
            raise ValueError("the images do not match the stored checksum")
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images have {len(labels)} labels")
    # A corrupt file raises whatever NumPy, Pillow and their decompressors do.
    except Exception as error:
        raise ValueError(
            f"{path} is not a part of {image_set.name}, or is corrupt: "
            f"{str(error) or type(error).__name__}"
        ) from error
    return LabeledImages(images, labels)
