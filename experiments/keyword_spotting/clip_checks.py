"""What the clips of the study must hold: the keyword, in every part."""

from collections.abc import Sequence

from experiments.data.clips import SILENCE, UNKNOWN, AudioError, Clips

PART_NAMES = ("training", "validation", "test")


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
    for name, part in zip(PART_NAMES, parts, strict=True):
        for word in (keyword, SILENCE):
            if word not in part.words:
                raise AudioError(
                    f"none of the {len(part.words)} clips for {name} is of {word!r}; "
                    "more clips of it, or other fractions, are needed"
                )
