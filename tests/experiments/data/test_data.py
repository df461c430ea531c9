import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

from experiments import data
from experiments.config import RunConfig


def test_digits_are_split_without_loss_or_overlap(digits):
    splits = (digits.train, digits.validation, digits.test)
    assert [len(split.labels) for split in splits] == [1024, 384, 389]
    raw, _ = sklearn.datasets.load_digits(return_X_y=True)
    together = np.concatenate([split.images.reshape(-1, 64) for split in splits])
    # Standardizing is affine, so the sorted rows of both differ by that map alone.
    scale = together.std() / raw.std()
    expected = (raw - raw.mean()) * scale + together.mean()
    np.testing.assert_allclose(
        np.sort(together.sum(1)), np.sort(expected.sum(1)), atol=2e-3
    )


def test_digits_are_standardised_by_the_training_images(digits):
    np.testing.assert_allclose(digits.train.images.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(digits.train.images.std(), 1, atol=1e-5)
    assert digits.train.images.shape == (1024, 8, 8, 1)
    assert digits.train.images.dtype == jnp.float32
    assert digits.train.labels.dtype == jnp.int32


def test_digits_are_stratified(digits):
    for split in (digits.train, digits.validation, digits.test):
        shares = np.bincount(split.labels) / len(split.labels)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)


def test_pixels_of_digits_are_labeled_by_themselves(digits):
    pixels = data.load("digit_pixels")
    raw, _ = sklearn.datasets.load_digits(return_X_y=True)
    for split, same in zip(pixels[1:], digits[1:], strict=True):
        np.testing.assert_array_equal(split.images, same.images)
        # Gray levels are whole numbers: those above 8 are the darker ones.
        levels = np.rint(split.images * raw.std() + raw.mean()).reshape(-1, 64)
        np.testing.assert_array_equal(split.labels, levels > 8)
    assert pixels.num_classes == 2


def test_the_split_is_fixed(digits):
    again = data.load("digits")
    np.testing.assert_array_equal(again.test.images, digits.test.images)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("digits", {"train_examples": 9}, "train_examples=9 has no .* default, None"),
        ("text", {"classes": 5}, "classes=5 has no effect with dataset='text'"),
        ("spoken_words", {"halved_images": True}, "halved_images=True has no effect"),
        ("cifar10", {"image_size": 32}, "image_size=32 .* allowed is the default, 224"),
        ("imagenet2012", {"classes": 9}, "classes=9 has no .* dataset='imagenet2012'"),
    ],
)
def test_a_setting_without_effect_is_refused(name, settings, message, tmp_path):
    options = RunConfig(dataset=name, **settings).data_options(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load_or_open(name, options)


def test_every_data_set_says_what_it_uses():
    assert set(data.USED) == {*data.DATASETS, *data.STREAMED}
    options = {field.name for field in dataclasses.fields(data.DataOptions)}
    assert {option for used in data.USED.values() for option in used} < options
