"""Reading clips of speech that are stored as npz parts.

A part holds ``labels`` (indices into ``classes``), ``speakers`` (empty for noise),
``sample_rate``, and either ``samples``, ``[clips, samples]`` as int16, or ``flac``,
concatenated FLAC files, with ``offsets``, where each file begins and ends. It may hold
``filenames``.
"""

import contextlib
import importlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from experiments.data.clips import AudioError, Clip, ClipStream, checked

PARTS = "*.npz"
KEYS = ("labels", "classes", "speakers", "sample_rate")


def read_parts(folder: Path) -> ClipStream:
    """The clips of all parts of a folder, in the order of the parts' names.

    Raises:
      AudioError: if there are no parts; and while the clips are read, if one is
        corrupt, empty, not int16, has several channels or another rate than 16 kHz;
        the message names the clip.
    """
    paths = sorted(folder.glob(PARTS))
    if not paths:
        raise AudioError(
            f"source={str(folder)!r} holds no {PARTS} files; it must be the folder of "
            f"the parts, with the arrays {list(KEYS)}"
        )
    count = 0
    for path in paths:
        with _opened(path) as arrays:
            count += len(arrays["labels"])
    return ClipStream(count, (clip for path in paths for clip in _clips(path)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    try:
        # NumPy does not close a corrupt file that it opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except (ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile) as error:
        raise AudioError(
            f"{path} is not a part with the arrays {list(KEYS)} and samples or flac: "
            f"{error}"
        ) from error


def _read(path: Path) -> dict[str, np.ndarray]:
    with _opened(path) as arrays:
        part = {key: arrays[key] for key in KEYS}
        encoded = "samples" not in arrays
        for key in ("flac", "offsets") if encoded else ("samples",):
            part[key] = arrays[key]
        count = len(part["labels"])
        part["labels"] = part["classes"][part["labels"]]
        default = [f"clip {row} of {path.name}" for row in range(count)]
        part["filenames"] = np.array(arrays.get("filenames", default))
        clips = len(part["offsets"]) - 1 if encoded else len(part["samples"])
        if {clips, len(part["speakers"]), len(part["filenames"])} != {count}:
            raise ValueError("the arrays are of different numbers of clips")
    return part


def _clips(path: Path) -> Iterator[Clip]:
    part = _read(path)
    texts = [part[key].astype(str) for key in ("labels", "speakers", "filenames")]
    flac = part["flac"].tobytes() if "flac" in part else None
    for row, (label, speaker, name) in enumerate(zip(*texts, strict=True)):
        place = f"clip {row} of {path}"
        if flac is not None:
            start, end = part["offsets"][row : row + 2]
            samples, rate = _decoded(flac[start:end], place)
        else:
            samples, rate = part["samples"][row], int(part["sample_rate"])
        yield Clip(checked(samples, rate, place), str(label), str(speaker), str(name))


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
