"""Log-mel energies and cepstral coefficients of speech, on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LOG_FLOOR = 1e-8  # added to mel energies of audio within [-1, 1]


class FeatureShape(NamedTuple):
    """How features are computed.

    Attributes:
      sample_rate: samples per second.
      window: samples of a frame (25 ms).
      hop: samples from one frame to the next (10 ms).
      fft: length of the transform, at least ``window``.
      mels: number of triangular filters, equally wide on the mel scale.
      lowest: least frequency of the filters, in Hz; the greatest is half the rate.
      coefficients: number of cepstral coefficients kept.
    """

    sample_rate: int = 16000
    window: int = 400
    hop: int = 160
    fft: int = 512
    mels: int = 40
    lowest: float = 20.0
    coefficients: int = 13

    def frames(self, samples: int) -> int:
        """Number of whole frames in that many samples."""
        return 1 + (samples - self.window) // self.hop


def mel_filters(shape: FeatureShape) -> np.ndarray:
    """Triangular filters, ``[fft // 2 + 1, mels]``, with peaks of one.

    Mel is ``2595 log10(1 + f / 700)``.
    """
    low, high = _mel(shape.lowest), _mel(shape.sample_rate / 2)
    edges = 700.0 * (10.0 ** (np.linspace(low, high, shape.mels + 2) / 2595.0) - 1.0)
    frequencies = np.fft.rfftfreq(shape.fft, 1.0 / shape.sample_rate)[:, None]
    rise = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall))


def cosine_transform(shape: FeatureShape) -> np.ndarray:
    """The orthonormal DCT-II, ``[mels, coefficients]``."""
    place = np.arange(shape.mels)[:, None] + 0.5
    basis = np.cos(np.pi / shape.mels * place * np.arange(shape.coefficients))
    scale = np.full(shape.coefficients, np.sqrt(2.0 / shape.mels))
    scale[0] = np.sqrt(1.0 / shape.mels)
    return basis * scale


@functools.partial(jax.jit, static_argnums=1)
def log_mel_energies(samples: jax.Array, shape: FeatureShape) -> jax.Array:
    """Logarithms of the mel energies of Hann windows.

    Args:
      samples: ``[..., samples]``, float32 within [-1, 1].
      shape: how they are computed.

    Returns:
      ``[..., frames, mels]``, float32.
    """
    count = shape.frames(samples.shape[-1])
    rows = np.arange(count)[:, None] * shape.hop + np.arange(shape.window)
    hann = jnp.asarray(np.hanning(shape.window + 1)[:-1], jnp.float32)
    spectrum = jnp.fft.rfft(samples[..., rows] * hann, shape.fft)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energies = power @ jnp.asarray(mel_filters(shape), jnp.float32)
    return jnp.log(energies + LOG_FLOOR)


@functools.partial(jax.jit, static_argnums=1)
def mfcc(samples: jax.Array, shape: FeatureShape) -> jax.Array:
    """Cepstral coefficients: the DCT of `log_mel_energies`.

    Args:
      samples: ``[..., samples]``, float32 within [-1, 1].
      shape: how they are computed.

    Returns:
      ``[..., frames, coefficients]``, float32.
    """
    return log_mel_energies(samples, shape) @ jnp.asarray(
        cosine_transform(shape), jnp.float32
    )


def in_batches(
    features: Callable[[jax.Array, FeatureShape], jax.Array],
    samples: Sequence[np.ndarray],
    shape: FeatureShape,
    size: int,
) -> np.ndarray:
    """Features of many arrays of equal length, with memory for a batch at a time.

    Args:
      features: `log_mel_energies` or `mfcc`.
      samples: float32 within [-1, 1], at least one.
      shape: how they are computed.
      size: arrays in a batch; the last one is filled up with silence.
    """
    parts = []
    for start in range(0, len(samples), size):
        part = np.stack(samples[start : start + size])
        full = np.pad(part, ((0, size - len(part)), (0, 0)))
        parts.append(np.asarray(features(jnp.asarray(full), shape))[: len(part)])
    return np.concatenate(parts)


def _mel(frequency: float) -> float:
    return float(2595.0 * np.log10(1.0 + frequency / 700.0))
