"""What of a data set is used, and where prepared data sets are."""

import dataclasses
from pathlib import Path

import numpy as np

DATA_DIR = Path("data")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What of a set of prepared images is used; sets in fixed splits ignore it.

    Attributes:
      data_dir: folder of all prepared data sets.
      validation_examples: training images that are held out; with zero there is no
        validation split.
      train_examples: training images that are used, None for all that are left.
      classes: the labels below this number are used, None for all.
      halved: whether height and width are halved, by means over 2x2 pixels.
      split_seed: of the choice of both.
      image_size: side of the images of a streamed set.
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
        """The rows that are held out, and those that are trained on.

        Raises:
          ValueError: if there are too few examples; ``name`` is that of the data set.
        """
        left = examples - self.validation_examples
        trained_on = left if self.train_examples is None else self.train_examples
        if not 1 <= trained_on <= left:
            raise ValueError(
                f"train_examples={self.train_examples!r} and validation_examples="
                f"{self.validation_examples!r} must leave at least one training image "
                f"and not exceed the {examples} of {name!r} together"
            )
        rows = np.random.default_rng(self.split_seed).permutation(examples)
        end = self.validation_examples + trained_on
        return rows[: self.validation_examples], rows[self.validation_examples : end]
