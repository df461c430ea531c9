"""The clips of the study: checked for the keyword, and split by speaker."""

from collections.abc import Sequence

import numpy as np

from experiments.data.clips import SILENCE, UNKNOWN, AudioError, Clips

PARTS = ("training", "validation", "test")


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


def check_parts(keyword: str, parts: Sequence[Clips]) -> None:
    """Refuses a part without the keyword, or without noise.

    Args:
      keyword: the word to spot.
      parts: the clips for training, validation and test.

    Raises:
      AudioError: with the part and what it lacks.
    """
    for name, part in zip(PARTS, parts, strict=True):
        for word in (keyword, SILENCE):
            if word not in part.words:
                raise AudioError(
                    f"none of the {len(part.words)} clips for {name} is of {word!r}; "
                    "more clips of it, or other fractions, are needed"
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
