"""Prepared sets of small images, held entirely on the device as uint8."""

import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Dataset, Split
from experiments.data.image_sets import ImageSet, LabeledImages
from experiments.data.options import DataOptions
from experiments.data.prepared import read_prepared


def load_small_images(image_set: ImageSet, options: DataOptions) -> Dataset:
    """Loads an image set.

    The training images of the chosen classes are permuted by ``options.split_seed``;
    the first ones are held out for validation and the following ones are used for
    training.

    Raises:
      NotPreparedError: if the data set is missing or incomplete.
      ValueError: if it is too small for the options, or its images cannot be halved.
    """
    num_classes = _checked_classes(image_set, options.classes)
    prepared = {
        name: _of_first_classes(split, num_classes)
        for name, split in read_prepared(image_set, options.data_dir).items()
    }
    if options.halved:
        prepared = {name: _halved(image_set, split) for name, split in prepared.items()}
    everything = prepared["train"]
    held_out, trained_on = options.split(len(everything.labels), image_set.name)
    return Dataset(
        num_classes=num_classes,
        train=_on_device(everything, trained_on),
        validation=_on_device(everything, held_out) if len(held_out) else None,
        test=_on_device(prepared["test"], slice(None)),
    )


def _checked_classes(image_set: ImageSet, classes: int | None) -> int:
    if classes is None:
        return image_set.num_classes
    if not 1 <= classes <= image_set.num_classes:
        raise ValueError(
            f"classes={classes!r} must be from 1 to {image_set.num_classes}, the "
            f"classes of {image_set.name!r}, or None for all"
        )
    return classes


def _of_first_classes(split: LabeledImages, num_classes: int) -> LabeledImages:
    rows = split.labels < num_classes
    return LabeledImages(split.images[rows], split.labels[rows])


def _halved(image_set: ImageSet, split: LabeledImages) -> LabeledImages:
    count, height, width, channels = split.images.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"halved images need an even height and width; {image_set.name!r} has "
            f"{height}x{width}"
        )
    blocks = split.images.reshape(count, height // 2, 2, width // 2, 2, channels)
    means = blocks.mean(axis=(2, 4), dtype=np.float32)
    return LabeledImages(np.rint(means).astype(np.uint8), split.labels)


def _on_device(split: LabeledImages, rows: np.ndarray | slice) -> Split:
    return Split(jnp.asarray(split.images[rows]), jnp.asarray(split.labels[rows]))
