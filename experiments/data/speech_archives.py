"""Reading the official archives of Speech Commands v0.02: tar files of WAV files.

Splits and labels are those of TensorFlow Datasets. Clips are read one by one, so that
archives need not fit into memory.
"""

import io
import posixpath
import wave
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import numpy as np

from experiments.data.clips import (
    SAMPLE_RATE,
    SILENCE,
    UNKNOWN,
    WORDS,
    AudioError,
    Clip,
    ClipStream,
    checked,
    speaker_of,
)
from experiments.data.tar_files import read_members

URL = "http://download.tensorflow.org/data/"
ALL_CLIPS = "speech_commands_v0.02.tar.gz"
TEST_CLIPS = "speech_commands_test_set_v0.02.tar.gz"

LISTS = ("testing_list.txt", "validation_list.txt")
BACKGROUND = "_background_noise_"
VALIDATION_NOISE = f"{BACKGROUND}/running_tap.wav"


def read_archives(paths: Mapping[str, Path]) -> dict[str, ClipStream]:
    """The splits of the archives, each with its clips in the order of its archive.

    The split ``test`` is all of `TEST_CLIPS`. In `ALL_CLIPS` a word is in the split
    ``validation`` if the archive's list says so, and in ``train`` if it is on no list.
    Background noise is cut there into segments of a second, which begin every half
    second; one of the recordings is for ``validation``.

    Args:
      paths: path of `TEST_CLIPS`, and optionally of `ALL_CLIPS`.

    Raises:
      AudioError: if an archive is corrupt, lacks a list or holds a file twice; and
        while the clips are read, if one is corrupt, or its file name gives no speaker.
    """
    splits = {}
    if ALL_CLIPS in paths:
        path = paths[ALL_CLIPS]
        counts, lists = _contents(path)
        if missing := sorted(set(LISTS) - set(lists)):
            raise AudioError(
                f"{path} is not the archive of all clips; it lacks {missing}"
            )
        testing, validation = (lists[name] for name in LISTS)
        validation |= {VALIDATION_NOISE}
        names = {"train": set(counts) - testing - validation, "validation": validation}
        for split, chosen in names.items():
            splits[split] = _stream(path, counts, chosen & set(counts))
    counts, _ = _contents(paths[TEST_CLIPS])
    splits["test"] = _stream(paths[TEST_CLIPS], counts, set(counts))
    return splits


def _contents(path: Path) -> tuple[dict[str, int], dict[str, set[str]]]:
    """The number of clips in each WAV file, and the names on each list."""
    counts, lists = {}, {}
    for name, content in _members(path):
        if name in counts:
            raise AudioError(f"{path} holds {name!r} twice; allowed is once")
        if name in LISTS:
            lists[name] = set(content.decode("utf-8", "replace").split())
        elif name.endswith(".wav") and _folder(name) == BACKGROUND:
            samples = _decoded(content, f"{name!r} in {path}")
            counts[name] = len(_starts(samples))
        elif name.endswith(".wav"):
            counts[name] = 1
    return counts, lists


def _stream(path: Path, counts: Mapping[str, int], names: Set[str]) -> ClipStream:
    return ClipStream(sum(counts[name] for name in names), _clips(path, names))


def _clips(path: Path, names: Set[str]) -> Iterator[Clip]:
    for name, content in _members(path):
        if name not in names:
            continue
        place, folder = f"{name!r} in {path}", _folder(name)
        samples = _decoded(content, place)
        if folder == BACKGROUND:
            for start in _starts(samples):
                segment = samples[start : start + SAMPLE_RATE]
                yield Clip(segment, SILENCE, "", f"{name}_{start}")
        elif folder == SILENCE:
            yield Clip(samples, SILENCE, "", name)
        else:
            label = folder if folder in WORDS else UNKNOWN
            yield Clip(samples, label, speaker_of(name, place), name)


def _folder(name: str) -> str:
    return posixpath.basename(posixpath.dirname(name))


def _starts(noise: np.ndarray) -> range:
    """Where the segments of background noise begin."""
    return range(0, len(noise) - SAMPLE_RATE, SAMPLE_RATE // 2)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file."""
    try:
        for name, content in read_members(path):
            yield posixpath.normpath(name), content
    except ValueError as error:
        raise AudioError(
            f"{path} is not an archive of Speech Commands, or is corrupt: {error}"
        ) from error


def _decoded(data: bytes, place: str) -> np.ndarray:
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels = file.getsampwidth(), file.getnchannels()
            count, rate = file.getnframes(), file.getframerate()
            frames = file.readframes(count)
    # A chunk that is longer than the file is a bare RuntimeError.
    except (wave.Error, EOFError, RuntimeError) as error:
        reason = str(error) or "it ends early"
        raise AudioError(f"{place} is not a WAV file of PCM: {reason}") from error
    if width != 2:
        raise AudioError(f"{place} has {8 * width} bits per sample; allowed are 16")
    if len(frames) != width * channels * count:
        raise AudioError(f"{place} is truncated")
    samples = np.frombuffer(frames, "<i2").astype(np.int16)
    if channels > 1:
        samples = samples.reshape(-1, channels)
    return checked(samples, rate, place)
