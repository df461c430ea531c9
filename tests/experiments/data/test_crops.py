import io

import numpy as np
import pytest
from PIL import Image

from experiments.data.crops import central_crop, random_box, random_resized_crop

WIDTH, HEIGHT = 200, 120


def ramps(kind):
    """Red tells the column, green the row."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    pixels = np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=95)
    return file.getvalue()


def test_a_central_crop_is_seven_eighths_of_the_shorter_side():
    pixels = central_crop(ramps("PNG"), 30).astype(float)
    assert pixels.shape == (30, 30, 3)
    side = 0.875 * HEIGHT  # 105 pixels, 3.5 for each of the result
    columns = (WIDTH - side) / 2 + 3.5 * (np.arange(30) + 0.5) - 0.5
    rows = (HEIGHT - side) / 2 + 3.5 * (np.arange(30) + 0.5) - 0.5
    # Rounding twice; at the edges the filter is cut off, by which it shifts a little.
    np.testing.assert_allclose(pixels[..., 0], np.tile(columns, [30, 1]), atol=1.5)
    np.testing.assert_allclose(pixels[..., 1], np.tile(rows[:, None], 30), atol=1.5)


def test_a_jpeg_decoded_at_a_fraction_shows_the_same_place():
    # At 12 pixels a quarter of the size is enough.
    exact = central_crop(ramps("PNG"), 12).astype(float)
    draft = central_crop(ramps("JPEG"), 12).astype(float)
    np.testing.assert_allclose(draft, exact, atol=5)


def test_random_boxes_have_the_areas_and_aspects_that_were_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(WIDTH, HEIGHT, rng) for _ in range(500)])
    left, upper, right, lower = boxes.T
    assert left.min() >= 0
    assert upper.min() >= 0
    assert right.max() <= WIDTH
    assert lower.max() <= HEIGHT
    width, height = right - left, lower - upper
    area, aspect = width * height / (WIDTH * HEIGHT), width / height
    # By half a pixel at a side of at least 37.
    assert 0.98 * 0.08 < area.min() < 0.12
    assert 0.75 < area.max() < 1.01 * 160 * 120 / (WIDTH * HEIGHT)  # all of its height
    assert 0.98 * 3 / 4 < aspect.min() < 0.78
    assert 1.28 < aspect.max() < 1.02 * 4 / 3


def test_a_shape_that_no_box_fits_is_cropped_in_its_center():
    assert random_box(1000, 10, np.random.default_rng(0)) == (495, 0, 505, 10)


def test_half_of_the_random_crops_are_flipped():
    image = ramps("PNG")
    rngs = [np.random.default_rng(seed) for seed in range(200)]
    crops = [random_resized_crop(image, 8, rng).astype(int) for rng in rngs]
    flipped = sum(crop[0, 0, 0] > crop[0, -1, 0] for crop in crops)
    # Five standard deviations of a fair coin: 5 * sqrt(200) / 2.
    assert abs(flipped - 100) < 36
    assert all(crop[0, 0, 1] < crop[-1, 0, 1] for crop in crops)


def test_what_is_no_image_is_told():
    with pytest.raises(OSError, match="cannot identify"):
        central_crop(b"nothing", 8)
