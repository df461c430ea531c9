"""Features against an independent computation in float64."""

import jax.numpy as jnp
import numpy as np

from experiments.data.speech_features import (
    LOG_FLOOR,
    FeatureShape,
    in_batches,
    log_mel_energies,
    mfcc,
)

SHAPE = FeatureShape(
    sample_rate=4000, window=100, hop=40, fft=128, mels=12, coefficients=5
)


def independent_energies(samples):
    """By sums over samples, filter by filter, as textbooks write it."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (SHAPE.lowest, 2000.0))
    mels = [low + (high - low) * k / 13 for k in range(14)]
    hertz = [700 * (10 ** (mel / 2595) - 1) for mel in mels]
    rows = []
    for start in range(0, len(samples) - 100 + 1, 40):
        n = np.arange(100)
        frame = samples[start : start + 100] * (0.5 - 0.5 * np.cos(2 * np.pi * n / 100))
        logs = []
        spectrum = [
            abs((frame * np.exp(-2j * np.pi * k * n / 128)).sum()) ** 2
            for k in range(65)
        ]
        for left, peak, right in zip(hertz, hertz[1:], hertz[2:]):
            energy = 0.0
            for k, power in enumerate(spectrum):
                f = k * 4000 / 128
                if left < f <= peak:
                    energy += power * (f - left) / (peak - left)
                elif peak < f < right:
                    energy += power * (right - f) / (right - peak)
            logs.append(np.log(energy + LOG_FLOOR))
        rows.append(logs)
    return np.array(rows)


def independent_mfcc(samples):
    m = np.arange(12)
    return np.array(
        [
            [
                np.sqrt((1 if c == 0 else 2) / 12)
                * (logs * np.cos(np.pi * c * (m + 0.5) / 12)).sum()
                for c in range(5)
            ]
            for logs in independent_energies(samples)
        ]
    )


def test_features_are_those_of_sums_in_float64():
    rng = np.random.default_rng(0)
    samples = 0.1 * rng.normal(size=500)
    found = mfcc(jnp.asarray(samples, jnp.float32), SHAPE)
    assert found.shape == (SHAPE.frames(500), 5) == (11, 5)
    # Energies of noise have a relative error of about 1e-6 in float32, which is the
    # absolute error of their logarithms; five coefficients add twelve of them.
    np.testing.assert_allclose(found, independent_mfcc(samples), atol=1e-4)
    found = log_mel_energies(jnp.asarray(samples, jnp.float32), SHAPE)
    np.testing.assert_allclose(found, independent_energies(samples), atol=1e-5)


def test_features_do_not_depend_on_batches():
    rng = np.random.default_rng(1)
    samples = (0.1 * rng.normal(size=[5, 500])).astype(np.float32)
    found = in_batches(mfcc, list(samples), SHAPE, 2)
    assert found.shape == (5, 11, 5)
    for row, alone in zip(found, samples):
        np.testing.assert_allclose(row, mfcc(alone, SHAPE), atol=1e-4)


def test_silence_has_finite_features():
    found = np.asarray(mfcc(jnp.zeros(500), SHAPE))
    np.testing.assert_allclose(found[:, 0], np.log(LOG_FLOOR) * np.sqrt(12), rtol=1e-5)
    np.testing.assert_allclose(found[:, 1:], 0, atol=1e-4)
