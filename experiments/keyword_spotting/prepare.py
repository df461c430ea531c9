"""The data of the study: made once, and kept in one file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.arrays_file import write_arrays
from experiments.keyword_spotting.audio import (
    Clips,
    check_keyword,
    read_clips,
    split_by_speaker,
)
from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.detection import Event
from experiments.keyword_spotting.mixing import (
    Examples,
    Recordings,
    make_examples,
    make_recordings,
)

CLIP_SECONDS = 1


class Prepared(NamedTuple):
    """Everything that is trained and evaluated on, with standardized features."""

    train: Examples
    validation: Recordings
    test: Recordings


def read_source(source: Path, config: KeywordConfig) -> Clips:
    """The clips of a folder, checked for the keyword."""
    rate = config.features.sample_rate
    clips = read_clips(source, rate, CLIP_SECONDS * rate)
    check_keyword(config.keyword, clips)
    return clips


def prepare(clips: Clips, config: KeywordConfig) -> Prepared:
    """Splits the speakers, mixes speech with noise and computes features.

    Each coefficient is standardized by its mean and deviation on the training frames.
    """
    train, validation, test = split_by_speaker(
        clips, config.fractions, config.split_seed
    )
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
    """Writes all arrays, in full or not at all."""
    arrays = {
        f"train_{name}": array for name, array in prepared.train._asdict().items()
    }
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
    """Reads what `write` wrote."""
    with np.load(path, allow_pickle=False) as arrays:

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
