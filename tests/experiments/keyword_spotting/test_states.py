"""Spans, uniform division, forced alignment and the statistics of states."""

import jax.numpy as jnp
import numpy as np

from experiments.data.speech_features import FeatureShape
from experiments.keyword_spotting.states import (
    aligned_states,
    spans_of,
    speech_span,
    statistics_of,
    uniform_states,
)

SHAPE = FeatureShape(sample_rate=1000, window=20, hop=10, fft=32)


def test_the_span_of_a_tone_is_found():
    rng = np.random.default_rng(0)
    samples = 1e-3 * rng.normal(size=1000)
    time = np.arange(300) / 1000
    samples[400:700] += np.sin(2 * np.pi * 100 * time)
    # Frames of 20 samples every 10: 39 is the first that touches sample 400, and 69
    # the last that touches sample 699.
    assert speech_span(samples, SHAPE) == (39, 70)


def test_uniform_states_divide_the_span():
    spans = np.array([[2, 8], [1, 4], [0, 0]])
    found = uniform_states(spans, np.array([True, False, False]), 9, 3)
    np.testing.assert_array_equal(
        found,
        [
            [3, 3, 0, 0, 1, 1, 2, 2, 3],
            [3, 4, 4, 4, 3, 3, 3, 3, 3],
            [3] * 9,
        ],
    )
    np.testing.assert_array_equal(spans_of(found[:1], 3), [[2, 8]])


def test_alignment_follows_the_posteriors():
    true = np.array([[2, 2, 0, 0, 0, 1, 2, 2], [2, 0, 1, 1, 1, 1, 1, 2]])
    uniform = np.array([[2, 2, 0, 0, 1, 1, 2, 2], [2, 0, 0, 0, 1, 1, 1, 2]])
    keywords = np.array([True, True])
    posteriors = np.full((2, 8, 4), 0.02)
    np.put_along_axis(posteriors, true[..., None], 0.94, axis=-1)
    statistics = statistics_of(uniform, keywords, 2)
    found = aligned_states(jnp.log(jnp.asarray(posteriors)), statistics, 2)
    np.testing.assert_array_equal(found, true)


def test_statistics_are_frequencies_and_mean_durations():
    labels = np.array([[2, 0, 0, 1], [2, 0, 1, 1], [3, 3, 2, 2]])
    found = statistics_of(labels, np.array([True, True, False]), 2)
    # Counts 3, 3, 4, 2, each one more.
    np.testing.assert_allclose(
        np.exp(found.log_priors), np.array([4, 4, 5, 3]) / 16, rtol=1e-6
    )
    # (3 + 2) frames in (2 + 1) visits.
    np.testing.assert_allclose(np.exp(found.transitions.move), 3 / 5, rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.transitions.stay), 2 / 5, rtol=1e-6)
