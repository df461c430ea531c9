"""Parts of a set of clips without common speakers."""

from collections.abc import Sequence

import numpy as np

from experiments.data.clips import Clips


def split_by_speaker(
    clips: Clips, fractions: Sequence[float], seed: int
) -> list[Clips]:
    """Parts without common speakers; clips of noise are divided at random.

    Args:
      clips: all clips.
      fractions: fractions of the speakers, by part; they sum to one.
      seed: seed of the random order.
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
