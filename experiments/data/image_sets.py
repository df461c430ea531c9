"""The sets of small images that can be prepared: their shapes and sources."""

import dataclasses
from typing import NamedTuple

import numpy as np


class LabeledImages(NamedTuple):
    """Images on the host, as they are stored.

    Attributes:
      images: ``[examples, height, width, channels]``, uint8.
      labels: ``[examples]``, int32.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of small images with labels, in a training and a test split.

    Attributes:
      name: as in TensorFlow Datasets.
      version: version of the prepared data set, as in TensorFlow Datasets.
      num_classes: number of different labels.
      shape: height, width and channels of an image.
      url: folder of the official archives.
      archives: their file names, also those of local files.
    """

    name: str
    version: str
    num_classes: int
    shape: tuple[int, int, int]
    url: str
    archives: tuple[str, ...]


_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

IMAGE_SETS: dict[str, ImageSet] = {
    image_set.name: image_set
    for image_set in (
        ImageSet(
            name="cifar10",
            version="3.0.2",
            num_classes=10,
            shape=(32, 32, 3),
            url="https://www.cs.toronto.edu/~kriz/",
            archives=("cifar-10-binary.tar.gz",),
        ),
        ImageSet(
            name="cifar100",
            version="3.0.2",
            num_classes=100,
            shape=(32, 32, 3),
            url="https://www.cs.toronto.edu/~kriz/",
            archives=("cifar-100-binary.tar.gz",),
        ),
        ImageSet(
            name="mnist",
            version="3.0.1",
            num_classes=10,
            shape=(28, 28, 1),
            url="https://storage.googleapis.com/cvdf-datasets/mnist/",
            archives=_IDX_FILES,
        ),
        ImageSet(
            name="fashion_mnist",
            version="3.0.1",
            num_classes=10,
            shape=(28, 28, 1),
            url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            archives=_IDX_FILES,
        ),
    )
}
