"""Data sets by name."""

from collections.abc import Callable

from experiments.data.dataset import Dataset as Dataset
from experiments.data.dataset import Split as Split
from experiments.data.digits import load_digits
from experiments.registry import look_up

DATASETS: dict[str, Callable[[], Dataset]] = {"digits": load_digits}


def load(name: str) -> Dataset:
    """Loads a data set.

    Raises:
      ValueError: if the name is unknown.
    """
    return look_up("dataset", name, DATASETS)()
