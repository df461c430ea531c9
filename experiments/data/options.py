"""Which part of a data set to use, and where prepared data sets are stored."""

import dataclasses
from pathlib import Path

import numpy as np

DATA_DIR = Path("data")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which part of a prepared data set to use.

    An option that a data set does not use must be the default, except for
    ``validation_examples``, which sets with a fixed validation split ignore.

    Attributes:
      data_dir: folder of all prepared data sets.
      validation_examples: number of training images to hold out; with zero there is no
        validation split.
      train_examples: number of training images to use; None for all that remain.
      classes: number of classes to use, those of the lowest labels; None for all.
      halved: whether to halve height and width, by averaging over 2x2 pixels.
      split_seed: seed of the choice of training and validation images.
      image_size: height and width of the images of a streamed set, in pixels.
      decode_workers: processes that decode a streamed set; zero for threads.
    """

    data_dir: Path = DATA_DIR
    validation_examples: int = 5000
    train_examples: int | None = None
    classes: int | None = None
    halved: bool = False
    split_seed: int = 0
    image_size: int = 224
    decode_workers: int = 0

    def split(self, examples: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the validation split and those of the training split.

        Raises:
          ValueError: if the data set, ``name``, has too few examples.
        """
        left = examples - self.validation_examples
        trained_on = left if self.train_examples is None else self.train_examples
        if not 1 <= trained_on <= left:
            raise ValueError(
                f"train_examples={self.train_examples!r} and validation_examples="
                f"{self.validation_examples!r} must leave at least one training image "
                f"and add up to at most the {examples} of {name!r}"
            )
        rows = np.random.default_rng(self.split_seed).permutation(examples)
        end = self.validation_examples + trained_on
        return rows[: self.validation_examples], rows[self.validation_examples : end]
