"""The 1797 handwritten digits of 8x8 pixels that come with scikit-learn."""

import jax.numpy as jnp
import numpy as np
import sklearn.datasets
from sklearn.model_selection import train_test_split

from experiments.data.dataset import Dataset, Split

TRAIN_SIZE = 1024
VALIDATION_SIZE = 384
SPLIT_SEED = 0
HALF = 8  # of the gray levels, which end at 16


def load_digits() -> Dataset:
    """Loads the digits in fixed, stratified splits of 1024, 384 and 389 images.

    The images are standardized by the mean and standard deviation of all training
    pixels.
    """
    return _load(of_pixels=False)


def load_digit_pixels() -> Dataset:
    """The same images, each labeled by its own pixels: 1 where more than half black.

    For autoencoders. The cross-entropy of two classes is that of a sigmoid, which is
    what autoencoders of digits minimize (Hinton and Salakhutdinov, 2006).
    """
    return _load(of_pixels=True)


def _load(*, of_pixels: bool) -> Dataset:
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    train_images, other_images, train_labels, other_labels = train_test_split(
        images,
        labels,
        train_size=TRAIN_SIZE,
        stratify=labels,
        random_state=SPLIT_SEED,
    )
    validation_images, test_images, validation_labels, test_labels = train_test_split(
        other_images,
        other_labels,
        train_size=VALIDATION_SIZE,
        stratify=other_labels,
        random_state=SPLIT_SEED,
    )
    mean, deviation = train_images.mean(), train_images.std()

    def split(raw: np.ndarray, digits: np.ndarray) -> Split:
        pixels = ((raw - mean) / deviation).reshape(-1, 8, 8, 1)
        return Split(
            images=jnp.asarray(pixels, jnp.float32),
            labels=jnp.asarray(raw > HALF if of_pixels else digits, jnp.int32),
        )

    return Dataset(
        num_classes=2 if of_pixels else 10,
        train=split(train_images, train_labels),
        validation=split(validation_images, validation_labels),
        test=split(test_images, test_labels),
    )
