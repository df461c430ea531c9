import pytest

from experiments import data


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def few_digits(digits):
    """A data set that is learned by heart in seconds."""
    first = data.Split(digits.train.images[:64], digits.train.labels[:64])
    return data.Dataset(digits.num_classes, first, first, first)
