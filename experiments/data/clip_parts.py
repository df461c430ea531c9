"""Reading clips of speech that are stored as npz parts.

A part holds ``labels`` (indices into ``classes``), ``speakers`` (empty for noise, and
for noise only), ``sample_rate``, and either ``samples``, ``[clips, samples]`` as int16,
or ``flac``, concatenated FLAC files, with ``offsets``, where each file begins and ends.
It may hold ``filenames``. If files are named ``*partIofN.npz``, all N must exist.
"""

import contextlib
import importlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.data.clips import SILENCE, AudioError, Clip, ClipStream, checked

PARTS = "*.npz"
KEYS = ("labels", "classes", "speakers", "sample_rate")
_NUMBERED = re.compile(r"(?P<stem>.*)part\d+of(?P<count>\d+)\.npz")


def read_parts(folder: Path) -> ClipStream:
    """The clips of all parts of a folder, in the order of the parts' names.

    Raises:
      AudioError: if parts are missing or hold no clips; and while the clips are read,
        if a part is corrupt, or a clip is empty, not int16, has several channels,
        another rate than 16 kHz or a word but no speaker; the message names the part
        or the clip.
    """
    paths = sorted(folder.glob(PARTS))
    if not paths:
        raise AudioError(
            f"source={str(folder)!r} holds no {PARTS} files; it must be the folder of "
            f"the parts, with the arrays {list(KEYS)}; archives must be prepared with "
            "python -m experiments.data.prepare"
        )
    _check_numbers(folder, paths)
    count = 0
    for path in paths:
        with _opened(path) as arrays:
            count += arrays["labels"].size
    if not count:
        raise AudioError(f"the {PARTS} files of source={str(folder)!r} hold no clips")
    return ClipStream(count, (clip for path in paths for clip in _clips(path)))


def _check_numbers(folder: Path, paths: Sequence[Path]) -> None:
    named = [match for path in paths if (match := _NUMBERED.fullmatch(path.name))]
    found = Counter((match["stem"], match["count"]) for match in named)
    for (stem, count), number in found.items():
        if number != int(count):
            raise AudioError(
                f"source={str(folder)!r} holds {number} of the {count} files "
                f"{stem}part*of{count}.npz; all must be there"
            )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    try:
        # NumPy does not close a corrupt file that it opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    # A corrupt file raises whatever NumPy and its decompressor do, even a bare
    # zlib.error.
    except Exception as error:
        raise AudioError(
            f"{path} is not a part with the arrays {list(KEYS)} and samples or flac: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a part, with words for ``labels``."""
    with _opened(path) as arrays:
        content = ("samples",) if "samples" in arrays else ("flac", "offsets")
        part = {key: arrays[key] for key in (*KEYS, *content)}
        rows = range(part["labels"].size)
        default = [f"clip {row} of {path.name}" for row in rows]
        part["filenames"] = np.array(arrays.get("filenames", default))
        _check_arrays(part)
        part["labels"] = part["classes"][part["labels"]]
        for key in ("labels", "speakers", "filenames"):
            part[key] = part[key].astype(str)
    return part


def _check_arrays(part: Mapping[str, np.ndarray]) -> None:
    dimensions = {"samples": 2, "sample_rate": 0}
    for key, array in part.items():
        allowed = dimensions.get(key, 1)
        if array.ndim != allowed:
            raise ValueError(f"{key} has ndim={array.ndim}; allowed is {allowed}")
        if key in ("labels", "offsets") and array.dtype.kind not in "iu":
            raise ValueError(f"{key} has dtype={array.dtype}; allowed are integers")
    clips = len(part["samples"]) if "samples" in part else len(part["offsets"]) - 1
    counts = {len(part[key]) for key in ("labels", "speakers", "filenames")}
    if counts != {clips}:
        raise ValueError("the arrays are of different numbers of clips")
    last = len(part["classes"]) - 1
    if clips and not 0 <= part["labels"].min() <= part["labels"].max() <= last:
        raise ValueError(f"labels must be from 0 to {last}, indices into classes")


def _clips(path: Path) -> Iterator[Clip]:
    part = _read(path)
    texts = [part[key] for key in ("labels", "speakers", "filenames")]
    flac = part["flac"].tobytes() if "flac" in part else None
    for row, (label, speaker, name) in enumerate(zip(*texts, strict=True)):
        place = f"clip {row} of {path}"
        if label != SILENCE and not speaker:
            raise AudioError(
                f"{place} is of the word {str(label)!r} but has no speaker; only "
                f"{SILENCE!r} has none"
            )
        if flac is not None:
            start, end = part["offsets"][row : row + 2]
            samples, rate = _decoded(flac[start:end], place)
        else:
            samples, rate = part["samples"][row], part["sample_rate"].item()
        yield Clip(checked(samples, rate, place), str(label), str(speaker), str(name))


def _decoded(data: bytes, place: str) -> tuple[np.ndarray, int]:
    try:
        soundfile = importlib.import_module("soundfile")
    except ImportError as error:
        raise AudioError(
            "decoding FLAC needs the package soundfile; install it with "
            "pip install '.[audio]'"
        ) from error
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{place} is not a FLAC file: {error}") from error
    return np.asarray(samples), int(rate)
