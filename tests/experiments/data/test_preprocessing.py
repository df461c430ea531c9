import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import preprocessing


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (64, 8, 8, 3), dtype=np.uint8)


def test_each_image_is_standardized(images):
    images = images.copy()
    images[3] = 200
    result = jax.jit(preprocessing.standardize)(images)
    # Of the one-colored image only the rounding of its mean is left, over 14**-1.
    np.testing.assert_allclose(result.mean((1, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(np.delete(result.std((1, 2, 3)), 3), 1, rtol=1e-4)
    np.testing.assert_allclose(result[3], 0, atol=1e-3)
    plain = images[0].astype(float)
    np.testing.assert_allclose(
        result[0], (plain - plain.mean()) / plain.std(), atol=1e-4
    )


def test_floats_are_left_as_they_are():
    floats = jnp.full([2, 4, 4, 1], 7.0)
    np.testing.assert_array_equal(preprocessing.standardize(floats), floats)


def test_crops_are_windows_of_the_padded_image_and_half_are_flipped(images):
    cropped = jax.jit(preprocessing.crop_and_flip)(jax.random.key(0), images)
    assert cropped.shape == images.shape
    assert cropped.dtype == jnp.uint8
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = []
    for image, original in zip(np.asarray(cropped), padded):
        windows = {
            (row, column, flip): original[row : row + 8, column : column + 8][
                :, :: -1 if flip else 1
            ]
            for row in range(3)
            for column in range(3)
            for flip in (False, True)
        }
        (place,) = [k for k, w in windows.items() if np.array_equal(w, image)]
        found.append(place)
    rows, columns, flips = map(np.array, zip(*found))
    # All three places occur among 64 draws but with probability 3 (2/3)^64 < 1e-10.
    assert set(rows) == set(columns) == set(range(3))
    assert 16 <= flips.sum() <= 48  # four deviations around 32
    again = preprocessing.crop_and_flip(jax.random.key(0), images)
    other = preprocessing.crop_and_flip(jax.random.key(1), images)
    np.testing.assert_array_equal(cropped, again)
    assert not np.array_equal(cropped, other)


def test_unknown_augmentations_are_refused():
    with pytest.raises(ValueError, match=r"augmentation='mixup' .*\['crop_flip', 'no"):
        preprocessing.augmentation("mixup")
