"""Crops of encoded photographs, on the host."""

import io
import math

import numpy as np
from PIL import Image

AREA = (0.08, 1.0)  # of a random crop, relative to the image
ASPECT = (3 / 4, 4 / 3)  # width by height
ATTEMPTS = 10
CENTRAL = 224 / 256  # side of the central crop, relative to the shorter side

Box = tuple[float, float, float, float]


def random_resized_crop(
    encoded: bytes, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Crops a random box, resizes it and flips it with probability one half.

    As in arXiv 1409.4842, section 6: the area of the box and the logarithm of its
    aspect ratio are uniformly distributed.

    Args:
      encoded: JPEG or another format that Pillow reads.
      size: height and width of the result.
      rng: random number generator for this image.

    Returns:
      ``[size, size, 3]``, uint8.

    Raises:
      OSError: if it is not an image, or a corrupt one.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = _resized(image, random_box(*image.size, rng), size)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def central_crop(encoded: bytes, size: int) -> np.ndarray:
    """Crops the central square of 7/8 of the shorter side; see the random crop."""
    with Image.open(io.BytesIO(encoded)) as image:
        side = CENTRAL * min(image.size)
        return _resized(image, _centered(*image.size, side, side), size)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Left, upper, right and lower edges; the central square if no attempt fits."""
    for _ in range(ATTEMPTS):
        area = rng.uniform(*AREA) * width * height
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(rng.integers(width - box_width + 1))
            upper = int(rng.integers(height - box_height + 1))
            return left, upper, left + box_width, upper + box_height
    side = min(width, height)
    return _centered(width, height, side, side)


def _centered(width: int, height: int, box_width: float, box_height: float) -> Box:
    left, upper = (width - box_width) / 2, (height - box_height) / 2
    return left, upper, left + box_width, upper + box_height


def _resized(image: Image.Image, box: Box, size: int) -> np.ndarray:
    width, height = image.size
    left, upper, right, lower = box
    # Decodes a JPEG at 1/2, 1/4 or 1/8 of its size if that is large enough.
    enough = (
        math.ceil(width * size / (right - left)),
        math.ceil(height * size / (lower - upper)),
    )
    image.draft("RGB", enough)
    across, down = image.size[0] / width, image.size[1] / height
    scaled = (left * across, upper * down, right * across, lower * down)
    resized = image.convert("RGB").resize(
        (size, size), Image.Resampling.BILINEAR, box=scaled
    )
    return np.asarray(resized)
