"""Clips of speech, and the checks that all their readers share."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.errors import UserError

SAMPLE_RATE = 16_000
# The labels of TensorFlow Datasets, in their order.
WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
SILENCE, UNKNOWN = "_silence_", "_unknown_"
LABELS = (*WORDS, SILENCE, UNKNOWN)
# Splits by data set: all of TensorFlow Datasets' speech_commands, or its test split,
# which is a separate archive.
SPEECH_SETS = {
    "speech_commands": ("train", "validation", "test"),
    "speech_commands_test": ("test",),
}

# Such as stop/0ab12cd3_nohash_0.wav, and _unknown_/marvin_0ab12cd3_nohash_0.wav.wav.
_FILE_NAME = re.compile(
    r"(?P<folder>\w+)/((?P<word>[a-z]+)_)?(?P<speaker>[0-9a-f]+)_nohash_\d+(\.wav)+"
)


class AudioError(UserError):
    """A set of clips is missing, or a clip cannot be used."""


class Clip(NamedTuple):
    """One clip.

    Attributes:
      samples: ``[samples]``, int16, at `SAMPLE_RATE`.
      label: the word; `SILENCE` for background noise and `UNKNOWN` for words without
        their own label.
      speaker: identifier of the speaker, empty for noise.
      file_name: path in the archive.
    """

    samples: np.ndarray
    label: str
    speaker: str
    file_name: str

    @property
    def word(self) -> str:
        """The label, or if it is `UNKNOWN` the word of the file name, if that has one.

        Examples:
          >>> Clip(np.zeros(9), "_unknown_", "0a", "marvin/0a_nohash_0.wav").word
          'marvin'
        """
        named = _FILE_NAME.fullmatch(self.file_name)
        if self.label != UNKNOWN or named is None:
            return self.label
        return named["word"] or named["folder"]


class ClipStream(NamedTuple):
    """Clips that are read one by one.

    Attributes:
      total: number of clips.
      clips: the clips, once.
    """

    total: int
    clips: Iterator[Clip]


class Clips(NamedTuple):
    """Clips of equal length.

    Attributes:
      samples: ``[clips, samples]``, int16.
      words: word of each clip; `SILENCE` for background noise and `UNKNOWN` for words
        that are not known.
      speakers: identifier of each speaker, empty for noise.
    """

    samples: np.ndarray
    words: np.ndarray
    speakers: np.ndarray

    def of(self, which: np.ndarray) -> "Clips":
        """Some of the clips, by index or mask."""
        return Clips(*(x[which] for x in self))


def stack(clips: Iterable[Clip], length: int) -> Clips:
    """Clips one after the other, padded at their ends with zeros.

    Args:
      clips: at least one.
      length: samples per clip.

    Raises:
      AudioError: if a clip is longer; the message names it.
    """
    samples, words, speakers = [], [], []
    for clip in clips:
        count = len(clip.samples)
        if count > length:
            raise AudioError(
                f"{clip.file_name} has {count} samples; allowed are 1 to {length}"
            )
        samples.append(np.pad(clip.samples, (0, length - count)))
        words.append(clip.word)
        speakers.append(clip.speaker)
    return Clips(np.stack(samples), np.array(words), np.array(speakers))


def speaker_of(file_name: str, place: str) -> str:
    """The speaker in a file name of the official archives.

    Args:
      file_name: path in the archive.
      place: how to name the file in a message.

    Raises:
      AudioError: if the file name has none.
    """
    named = _FILE_NAME.fullmatch(file_name)
    if named is None:
        raise AudioError(
            f"{place} names no speaker; allowed are names like "
            "'stop/0ab12cd3_nohash_0.wav'"
        )
    return named["speaker"]


def checked(samples: np.ndarray, rate: int, place: str) -> np.ndarray:
    """Returns the samples if they can be used.

    Args:
      samples: samples of a clip.
      rate: samples per second.
      place: how to name the clip in a message.

    Raises:
      AudioError: if there are none, they are not int16 or have several channels, or the
        rate is not `SAMPLE_RATE`.
    """
    if rate != SAMPLE_RATE:
        raise AudioError(f"{place} has sample_rate={rate!r}; allowed is {SAMPLE_RATE}")
    if samples.dtype != np.int16:
        raise AudioError(f"{place} has dtype={samples.dtype}; allowed is int16")
    if samples.ndim != 1:
        raise AudioError(f"{place} has {samples.shape[1]} channels; allowed is one")
    if not len(samples):
        raise AudioError(f"{place} has 0 samples; there must be at least one")
    return samples
