"""Prepared sets of small images, whole on the device as uint8."""

import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Dataset, Split
from experiments.data.image_sets import ImageSet, LabelledImages
from experiments.data.options import DataOptions
from experiments.data.prepared import read_prepared


def load_small_images(image_set: ImageSet, options: DataOptions) -> Dataset:
    """Loads an image set.

    A permutation of the training images by ``options.split_seed`` comes first; its
    head is held out for validation and what follows is trained on.

    Raises:
      NotPreparedError: if the data set is missing or half-written.
      ValueError: if it is too small for the options.
    """
    prepared = read_prepared(image_set, options.data_dir)
    everything = prepared["train"]
    validation_examples = options.validation_examples
    left = len(everything.labels) - validation_examples
    train_examples = left if options.train_examples is None else options.train_examples
    if not 1 <= train_examples <= left:
        raise ValueError(
            f"train_examples={options.train_examples!r} and validation_examples="
            f"{validation_examples!r} must leave at least one training image and not "
            f"exceed the {len(everything.labels)} of {image_set.name!r} together"
        )
    rows = np.random.default_rng(options.split_seed).permutation(len(everything.labels))
    validation = None
    if validation_examples:
        validation = _on_device(everything, rows[:validation_examples])
    train_rows = rows[validation_examples : validation_examples + train_examples]
    return Dataset(
        num_classes=image_set.num_classes,
        train=_on_device(everything, train_rows),
        validation=validation,
        test=_on_device(prepared["test"], slice(None)),
    )


def _on_device(split: LabelledImages, rows: np.ndarray | slice) -> Split:
    return Split(jnp.asarray(split.images[rows]), jnp.asarray(split.labels[rows]))
