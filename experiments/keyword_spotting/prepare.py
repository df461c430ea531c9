"""The data of the study: made once, and kept in one file."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.arrays_file import write_arrays
from experiments.data.clip_parts import read_parts
from experiments.data.clips import SAMPLE_RATE, AudioError, Clips, stack
from experiments.data.speakers import split_by_speaker
from experiments.data.speech import load_clips
from experiments.keyword_spotting.clip_checks import check_keyword, check_parts
from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.detection import Event
from experiments.keyword_spotting.mixing import (
    Examples,
    Recordings,
    make_examples,
    make_recordings,
)
from experiments.records.files import origin

LENGTH = SAMPLE_RATE  # samples of a clip


class Prepared(NamedTuple):
    """Everything that is trained and evaluated on, with standardized features."""

    train: Examples
    validation: Recordings
    test: Recordings


def read_clips(config: KeywordConfig, data_dir: Path, source: Path | None) -> Clips:
    """The clips of the study, checked for the keyword.

    Args:
      config: settings of the study.
      data_dir: folder of all prepared data sets.
      source: folder of npz parts to read in place of ``config.dataset``.

    Raises:
      AudioError: if a clip cannot be used, or none contains the keyword.
      NotPreparedError: if the data set must be prepared first; the message says how.
    """
    if source is None:
        clips = load_clips(config.dataset, data_dir, LENGTH)
    else:
        clips = stack(read_parts(source).clips, LENGTH)
    check_keyword(config.keyword, clips)
    return clips


def prepare(clips: Clips, config: KeywordConfig) -> Prepared:
    """Splits the speakers, mixes speech with noise and computes features.

    Each coefficient is standardized by its mean and deviation on the training frames.

    Raises:
      AudioError: if the speakers of one part never say the keyword.
    """
    parts = split_by_speaker(clips, config.fractions, config.split_seed)
    check_parts(config.keyword, parts)
    train, validation, test = parts
    seed = config.split_seed
    examples = make_examples(train, config, seed)
    mean = examples.features.mean(axis=(0, 1))
    deviation = examples.features.std(axis=(0, 1))

    def standardized(features: np.ndarray) -> np.ndarray:
        return np.asarray((features - mean) / deviation, np.float32)

    streams = [
        make_recordings(validation, config, config.validation_passes, seed + 1),
        make_recordings(test, config, config.test_passes, seed + 2),
    ]
    return Prepared(
        examples._replace(features=standardized(examples.features)),
        *(s._replace(features=standardized(s.features)) for s in streams),
    )


def write(path: Path, prepared: Prepared) -> None:
    """Writes all arrays and what made them, in full or not at all."""
    arrays = {
        f"train_{name}": array for name, array in prepared.train._asdict().items()
    }
    arrays["origin"] = np.array(json.dumps(origin()))
    for split in ("validation", "test"):
        recordings: Recordings = getattr(prepared, split)
        events = recordings.events
        arrays |= {
            f"{split}_features": recordings.features,
            f"{split}_hours": np.float64(recordings.hours),
            f"{split}_events": np.array([event[:3] for event in events], np.int64),
            f"{split}_speakers": np.array([event.speaker for event in events]),
        }
    write_arrays(path, arrays)


def read(path: Path) -> Prepared:
    """Reads what `write` wrote.

    Raises:
      AudioError: if the file is corrupt.
    """
    try:
        return _read(path)
    # A corrupt file raises whatever NumPy and its decompressor do.
    except Exception as error:
        raise AudioError(
            f"{path} is corrupt ({type(error).__name__}: {error}); remove it and run "
            "the command again"
        ) from error


def _read(path: Path) -> Prepared:
    # NumPy does not close a corrupt file that it opened itself.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:

        def recordings(split: str) -> Recordings:
            pairs = zip(
                arrays[f"{split}_events"].tolist(),
                arrays[f"{split}_speakers"].tolist(),
                strict=True,
            )
            return Recordings(
                arrays[f"{split}_features"],
                [
                    Event(recording, start, end, speaker)
                    for (recording, start, end), speaker in pairs
                ],
                float(arrays[f"{split}_hours"]),
            )

        train = Examples(*(arrays[f"train_{name}"] for name in Examples._fields))
        return Prepared(train, recordings("validation"), recordings("test"))
