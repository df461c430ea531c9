"""Clips in background noise: training examples, and continuous recordings."""

from typing import NamedTuple

import numpy as np

from experiments.data.clips import SILENCE, Clips
from experiments.data.speech_features import in_batches, mfcc
from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.detection import Event
from experiments.keyword_spotting.states import speech_span

NOISE_LEVEL = 0.01  # root mean square of the noise; full scale is one
SECONDS = 60  # of a recording
PAD = 0.2  # seconds of noise around a training clip
GAPS = (0.5, 4.0)  # seconds between the clips of a recording
BATCH = 8  # recordings or clips whose features are computed together


class Recordings(NamedTuple):
    """Recordings of a minute each, as features.

    Attributes:
      features: ``[recordings, frames, coefficients]``.
      events: the keywords.
      hours: length of all recordings, in hours.
    """

    features: np.ndarray
    events: list[Event]
    hours: float


class Examples(NamedTuple):
    """Training clips in noise.

    Attributes:
      features: ``[examples, frames, coefficients]``.
      spans: first frame and frame after the last of the speech, ``[examples, 2]``;
        empty for noise.
      words: word of each example.
    """

    features: np.ndarray
    spans: np.ndarray
    words: np.ndarray


def make_examples(clips: Clips, config: KeywordConfig, seed: int) -> Examples:
    """Every clip in noise, at ratios that are uniform in dB, several times."""
    shape, rng = config.features, np.random.default_rng(seed)
    noise = _noise_of(clips)
    pad = int(PAD * shape.sample_rate)
    frames_before = pad // shape.hop
    mixtures, spans, words = [], [], []
    for word, samples in zip(clips.words, clips.samples, strict=True):
        speech = samples / 32768.0
        span = (0, 0) if word == SILENCE else speech_span(speech, shape)
        is_keyword = word == config.keyword
        count = config.keyword_variants if is_keyword else config.variants
        for _ in range(count):
            mixture = _noise(rng, noise, len(speech) + 2 * pad)
            if word != SILENCE:
                _add(mixture, pad, speech, span, _snr(rng, config), config)
            mixtures.append(_leveled(rng, mixture))
            shift = frames_before if span[1] else 0
            spans.append((span[0] + shift, span[1] + shift))
            words.append(word)
    features = in_batches(mfcc, mixtures, shape, BATCH)
    return Examples(features, np.array(spans), np.array(words))


def make_recordings(
    clips: Clips, config: KeywordConfig, passes: int, seed: int
) -> Recordings:
    """Continuous recordings: words with gaps, in noise that changes.

    Each pass uses every clip of speech once, in a new order, with new gaps, noise and
    ratios.
    """
    shape, rng = config.features, np.random.default_rng(seed)
    noise, length = _noise_of(clips), SECONDS * shape.sample_rate
    speech = np.flatnonzero(clips.words != SILENCE)
    order = np.concatenate([rng.permutation(speech) for _ in range(passes)])
    spans = {
        row: speech_span(clips.samples[row] / 32768.0, shape) for row in speech.tolist()
    }
    mixtures: list[np.ndarray] = []
    events: list[Event] = []
    mixture, at = _noise(rng, noise, length), 0
    for row in order.tolist():
        samples = clips.samples[row] / 32768.0
        at += int(rng.uniform(*GAPS) * shape.sample_rate)
        if at + len(samples) > length:
            mixtures.append(_leveled(rng, mixture))
            mixture, at = _noise(rng, noise, length), 0
        _add(mixture, at, samples, spans[row], _snr(rng, config), config)
        if clips.words[row] == config.keyword:
            first = at // shape.hop
            start, end = (first + frame for frame in spans[row])
            events.append(Event(len(mixtures), start, end, str(clips.speakers[row])))
        at += len(samples)
    mixtures.append(_leveled(rng, mixture))
    return Recordings(
        in_batches(mfcc, mixtures, shape, BATCH), events, len(mixtures) * SECONDS / 3600
    )


def _noise_of(clips: Clips) -> np.ndarray:
    noise = clips.samples[clips.words == SILENCE] / 32768.0
    level = np.sqrt(np.mean(np.square(noise), axis=1, keepdims=True))
    loud = level[:, 0] > 1e-5
    return noise[loud] / level[loud] * NOISE_LEVEL


def _noise(rng: np.random.Generator, noise: np.ndarray, length: int) -> np.ndarray:
    """Noise clips one after the other, from a random place in the first."""
    each = noise.shape[1]
    rows = rng.integers(len(noise), size=length // each + 2)
    start = int(rng.integers(each))
    return noise[rows].reshape(-1)[start : start + length].copy()


def _snr(rng: np.random.Generator, config: KeywordConfig) -> float:
    return float(rng.uniform(config.least_snr, config.greatest_snr))


def _add(
    mixture: np.ndarray,
    at: int,
    speech: np.ndarray,
    span: tuple[int, int],
    snr: float,
    config: KeywordConfig,
) -> None:
    """Adds speech in place, scaled so that within its span the ratio is ``snr`` dB."""
    shape = config.features
    inside = speech[span[0] * shape.hop : span[1] * shape.hop]
    level = np.sqrt(np.mean(np.square(inside))) + 1e-9
    gain = NOISE_LEVEL * 10 ** (snr / 20) / level
    mixture[at : at + len(speech)] += gain * speech


def _leveled(rng: np.random.Generator, mixture: np.ndarray) -> np.ndarray:
    """The mixture at a random volume, within ±6 dB, as float32."""
    return (mixture * 10 ** (rng.uniform(-6, 6) / 20)).astype(np.float32)
