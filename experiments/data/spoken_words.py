"""The ten words of Speech Commands as a classification task: log-mel energies."""

import jax.numpy as jnp
import numpy as np

from experiments.data.clips import SAMPLE_RATE, WORDS, Clips
from experiments.data.dataset import Dataset, Split
from experiments.data.options import DataOptions
from experiments.data.speakers import split_by_speaker
from experiments.data.speech import load_clips
from experiments.data.speech_features import (
    FeatureShape,
    in_batches,
    log_mel_energies,
)

NAME = "spoken_words"
SOURCE = "speech_commands_test"
TEST_SHARE = 0.2  # of the speakers
TEST_SEED = 0
BLOCK = 7  # frames that are averaged, 70 ms; a clip has 98 frames
BATCH = 64  # clips whose energies are computed together


def load_spoken_words(options: DataOptions) -> Dataset:
    """Loads the clips of the ten words from the prepared ``speech_commands_test``.

    The other two labels are left out: noise has no speaker to be split by, and
    "unknown" stands for 25 words with a few clips each.

    A clip is a picture of 14 blocks of time and 40 mel bands: the logarithms of mel
    energies of windows of 25 ms every 10 ms, averaged over blocks of 70 ms, each band
    standardized by its mean and deviation on the training clips.

    No speaker is in two splits. The test speakers, a fifth of all, are always the same.
    The others are permuted by ``options.split_seed``, and as many of the first ones are
    held out as ``options.validation_examples`` clips need; excess clips of the last one
    are not used. ``options.train_examples`` clips of the remaining speakers, chosen at
    random, are used for training.

    Raises:
      AudioError: if a clip is longer than a second.
      NotPreparedError: if the data set is missing or corrupt.
      ValueError: if there are too few clips for the options.
    """
    clips = load_clips(SOURCE, options.data_dir, SAMPLE_RATE)
    clips = clips.of(np.isin(clips.words, WORDS))
    others, test = split_by_speaker(clips, (1 - TEST_SHARE, TEST_SHARE), TEST_SEED)
    if not len(test.words):
        raise ValueError(
            f"{SOURCE!r} in {str(options.data_dir)!r} has too few speakers: none is "
            f"left for the test, a share of {TEST_SHARE}"
        )
    held_out, trained_on = _rows(others.speakers, options)
    train, validation = others.of(trained_on), others.of(held_out)
    energies = _energies(train)
    mean, deviation = energies.mean((0, 1)), energies.std((0, 1))

    def split(part: Clips, energies: np.ndarray) -> Split:
        pictures = ((energies - mean) / deviation)[..., None]
        labels = [WORDS.index(word) for word in part.words]
        return Split(jnp.asarray(pictures), jnp.asarray(labels, jnp.int32))

    return Dataset(
        num_classes=len(WORDS),
        train=split(train, energies),
        validation=split(validation, _energies(validation)) if len(held_out) else None,
        test=split(test, _energies(test)),
    )


def _rows(speakers: np.ndarray, options: DataOptions) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the validation split and those of the training split."""
    rng = np.random.default_rng(options.split_seed)
    names, counts = np.unique(speakers, return_counts=True)
    order = rng.permutation(len(names))
    before = np.cumsum(counts[order]) - counts[order]
    reserved = names[order[before < options.validation_examples]]
    is_held_out = np.isin(speakers, reserved)
    held_out = rng.permutation(np.flatnonzero(is_held_out))
    left = rng.permutation(np.flatnonzero(~is_held_out))
    trained_on = len(left) if options.train_examples is None else options.train_examples
    if not 1 <= trained_on <= len(left):
        raise ValueError(
            f"train_examples={options.train_examples!r} and validation_examples="
            f"{options.validation_examples!r} must leave at least one training clip "
            f"and fit into the {len(speakers)} of {NAME!r} outside the test; with no "
            f"speaker in both, {len(left)} are left for training"
        )
    return held_out[: options.validation_examples], left[:trained_on]


def _energies(clips: Clips) -> np.ndarray:
    """Means over blocks, ``[clips, blocks, mels]``."""
    samples = clips.samples.astype(np.float32) / 32768
    energies = in_batches(log_mel_energies, list(samples), FeatureShape(), BATCH)
    count, frames, mels = energies.shape
    return energies.reshape(count, frames // BLOCK, BLOCK, mels).mean(axis=2)
