"""What of a data set is used, and where prepared data sets are."""

import dataclasses
from pathlib import Path

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
    """

    data_dir: Path = DATA_DIR
    validation_examples: int = 5000
    train_examples: int | None = None
    classes: int | None = None
    halved: bool = False
    split_seed: int = 0
