"""Augmentation and standardization of images, inside the compiled step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.registry import look_up

PADDING = 1 / 8  # of a side, at each end: 32x32 pixels are cropped from 40x40

# Of ImageNet's training set, per channel: the values in common use.
CHANNEL_MEANS = (123.675, 116.28, 103.53)
CHANNEL_DEVIATIONS = (58.395, 57.12, 57.375)

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


def standardize(images: jax.Array) -> jax.Array:
    """Standardizes raw uint8 images, each to mean 0 and deviation 1.

    Floats are returned unmodified. The deviation of an image of n numbers is taken to
    be at least ``1 / sqrt(n)`` gray levels, so that an image of one color becomes zero.
    """
    if images.dtype != jnp.uint8:
        return images
    pixels = images.astype(jnp.float32)
    axes = tuple(range(1, pixels.ndim))
    count = pixels[0].size
    mean = jnp.mean(pixels, axes, keepdims=True)
    deviation = jnp.std(pixels, axes, keepdims=True)
    return (pixels - mean) / jnp.maximum(deviation, count**-0.5)


def standardize_channels(images: jax.Array) -> jax.Array:
    """Standardizes raw uint8 images by ImageNet's channel means and deviations.

    Floats are returned unmodified.
    """
    if images.dtype != jnp.uint8:
        return images
    return (images - jnp.array(CHANNEL_MEANS)) / jnp.array(CHANNEL_DEVIATIONS)


def crop_and_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Pads with zeros, crops at a random position, flips with probability one half."""
    corner_key, flip_key = jax.random.split(key)
    count, height, width, channels = images.shape
    down, right = round(PADDING * height), round(PADDING * width)
    padded = jnp.pad(images, ((0, 0), (down, down), (right, right), (0, 0)))
    bounds = jnp.array([2 * down + 1, 2 * right + 1])
    corners = jax.random.randint(corner_key, [count, 2], 0, bounds)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    cropped = jax.vmap(crop)(padded, corners)
    flipped = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
    return jnp.where(flipped, cropped[:, :, ::-1], cropped)


def _as_they_are(key: jax.Array, images: jax.Array) -> jax.Array:
    del key
    return images


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": _as_they_are,
    "crop_flip": crop_and_flip,
}

STANDARDIZATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "image": standardize,
    "imagenet": standardize_channels,
}


def standardization(name: str) -> Callable[[jax.Array], jax.Array]:
    """A function from raw images to what a model takes.

    Raises:
      ValueError: if the name is unknown.
    """
    return look_up("standardization", name, STANDARDIZATIONS)


def augmentation(name: str) -> Augmentation:
    """A function from a key and images to images of the same shape.

    Raises:
      ValueError: if the name is unknown.
    """
    return look_up("augmentation", name, AUGMENTATIONS)
