"""Clips of speech from npz parts, as samples or FLAC files, with checks."""

import importlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.errors import UserError

PARTS = "*.npz"
KEYS = ("labels", "classes", "speakers", "sample_rate")
SILENCE, UNKNOWN = "_silence_", "_unknown_"


class Clips(NamedTuple):
    """Clips of equal length.

    Attributes:
      samples: ``[clips, samples]``, int16.
      words: word of each clip; `SILENCE` for background noise and `UNKNOWN` for words
        without a class of their own.
      speakers: identifier of each speaker, empty for noise.
    """

    samples: np.ndarray
    words: np.ndarray
    speakers: np.ndarray

    def of(self, which: np.ndarray) -> "Clips":
        """Some of the clips, by index or mask."""
        return Clips(*(x[which] for x in self))


class AudioError(UserError):
    """A data set of clips is missing, or one of its clips cannot be used."""


def read_clips(source: Path, sample_rate: int, length: int) -> Clips:
    """Decodes all parts of a folder.

    Args:
      source: folder of the npz parts, each with the arrays `KEYS` and either
        ``samples``, ``[clips, samples]`` as int16, or ``flac``, concatenated FLAC
        files, with ``offsets``, the bytes at which they begin and end.
      sample_rate: that every clip must have.
      length: samples per clip; shorter ones are padded with zeros.

    Raises:
      AudioError: if there are no parts, or a clip is corrupt, empty, longer than
        ``length``, has several channels or another rate; the message names the clip.
    """
    paths = sorted(source.glob(PARTS))
    if not paths:
        raise AudioError(
            f"source={str(source)!r} holds no {PARTS} files; it must be the folder of "
            f"the parts, with the arrays {list(KEYS)}"
        )
    parts = [_read_part(path, sample_rate, length) for path in paths]
    return Clips(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def check_keyword(keyword: str, clips: Clips) -> None:
    """Refuses a keyword that no clip holds.

    Raises:
      AudioError: with the words there are.
    """
    words = sorted(set(clips.words.tolist()) - {SILENCE, UNKNOWN})
    if keyword not in words:
        raise AudioError(
            f"keyword={keyword!r} is the word of no clip; the data set has {words}"
        )


def _read_part(path: Path, sample_rate: int, length: int) -> Clips:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            part = {key: arrays[key] for key in KEYS}
            encoded = "samples" not in arrays
            for key in ("flac", "offsets") if encoded else ("samples",):
                part[key] = arrays[key]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise AudioError(
            f"{path} is not a part with the arrays {list(KEYS)} and samples or flac: "
            f"{error}"
        ) from error
    count = len(part["labels"])
    samples = np.zeros((count, length), np.int16)
    data, offsets = (part["flac"].tobytes(), part["offsets"]) if encoded else (b"", [])
    for row in range(count):
        place = f"clip {row} of {path}"
        if encoded:
            found, rate = _decoded(data[offsets[row] : offsets[row + 1]], place)
        else:
            found, rate = part["samples"][row], int(part["sample_rate"])
        _check(found, rate, place, sample_rate, length)
        samples[row, : len(found)] = found
    return Clips(
        samples,
        part["classes"][part["labels"]].astype(str),
        part["speakers"].astype(str),
    )


def _decoded(data: bytes, place: str) -> tuple[np.ndarray, int]:
    try:
        soundfile = importlib.import_module("soundfile")
    except ImportError as error:
        raise AudioError(
            "decoding FLAC needs the package soundfile; install it with "
            "pip install '.[keyword_spotting]'"
        ) from error
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{place} is not a FLAC file: {error}") from error
    return np.asarray(samples), int(rate)


def _check(
    samples: np.ndarray, rate: int, place: str, sample_rate: int, length: int
) -> None:
    if rate != sample_rate:
        raise AudioError(f"{place} has sample_rate={rate!r}; allowed is {sample_rate}")
    if samples.dtype != np.int16:
        raise AudioError(f"{place} has dtype={samples.dtype}; allowed is int16")
    if samples.ndim != 1:
        raise AudioError(f"{place} has {samples.shape[1]} channels; allowed is one")
    if not 0 < len(samples) <= length:
        raise AudioError(
            f"{place} has {len(samples)} samples; allowed are 1 to {length}"
        )


def split_by_speaker(
    clips: Clips, fractions: Sequence[float], seed: int
) -> list[Clips]:
    """Parts without common speakers; clips of noise are divided at random.

    Args:
      clips: all clips.
      fractions: of the speakers, by part; they sum to one.
      seed: of the random order.
    """
    rng = np.random.default_rng(seed)
    noise = clips.speakers == ""
    owners = clips.speakers.astype(object)
    owners[noise] = [f"noise {row}" for row in np.flatnonzero(noise)]
    bounds = np.cumsum(fractions)[:-1]
    part_of: dict[str, int] = {}
    for group in (owners[~noise], owners[noise]):
        names = rng.permutation(np.unique(group.astype(str)))
        parts = np.split(names, np.round(bounds * len(names)).astype(int))
        part_of |= {name: part for part, found in enumerate(parts) for name in found}
    parts_of_clips = np.array([part_of[owner] for owner in owners])
    return [clips.of(parts_of_clips == part) for part in range(len(fractions))]
