"""Detections in recordings: firing, matching, and false rejects at false alarms."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Event(NamedTuple):
    """A keyword in a recording.

    Attributes:
      recording: number of the recording.
      start: first frame.
      end: frame after the last.
      speaker: identifier of its speaker.
    """

    recording: int
    start: int
    end: int
    speaker: str


class Detection(NamedTuple):
    """A frame at which the detector fired, and the first frame of its path."""

    recording: int
    frame: int
    start: int


class Falls(NamedTuple):
    """The frames after which the score falls, in order of recordings and frames.

    Attributes:
      recordings: number of the recording, ``[falls]``.
      frames: frame of each fall in its recording.
      scores: scores at these frames.
      starts: first frames of the paths that end there.
    """

    recordings: np.ndarray
    frames: np.ndarray
    scores: np.ndarray
    starts: np.ndarray


class Operating(NamedTuple):
    """A threshold and what it gives.

    Attributes:
      threshold: least score at which the detector fires.
      false_alarms: detections that match no keyword.
      rejected: whether each keyword was missed, ``[keywords]``.
      iou: intersection over union of each detected keyword's span.
      shift: mean of the distances of the span's ends from the keyword's, in frames.
    """

    threshold: float
    false_alarms: int
    rejected: np.ndarray
    iou: np.ndarray
    shift: np.ndarray


def iou(start: float, end: float, other_start: float, other_end: float) -> float:
    """Intersection over union of two intervals.

    Examples:
      >>> iou(0, 8, 4, 10)
      0.4
    """
    common = max(0.0, min(end, other_end) - max(start, other_start))
    return common / (end - start + other_end - other_start - common)


def falls_of(scores: np.ndarray, starts: np.ndarray) -> Falls:
    """Where the score falls in the next frame, or the recording ends.

    Args:
      scores: ``[recordings, frames]``.
      starts: first frames of the paths, likewise.
    """
    after = np.pad(scores[:, 1:], ((0, 0), (0, 1)), constant_values=-np.inf)
    recordings, frames = np.nonzero(after < scores)
    return Falls(
        recordings, frames, scores[recordings, frames], starts[recordings, frames]
    )


def fire(falls: Falls, threshold: float, refractory: int) -> list[Detection]:
    """The detections in recordings, at scores of at least the threshold.

    The detector waits while the score rises, fires where it falls, and then rests for
    ``refractory`` frames.

    Args:
      falls: falls of the scores.
      threshold: least score.
      refractory: frames from a detection to the next.
    """
    loud = np.flatnonzero(falls.scores >= threshold)
    found: list[Detection] = []
    row, free = -1, 0
    for recording, frame, start in zip(
        falls.recordings[loud].tolist(),
        falls.frames[loud].tolist(),
        falls.starts[loud].tolist(),
        strict=True,
    ):
        if recording != row or frame >= free:
            found.append(Detection(recording, frame, start))
            row, free = recording, frame + refractory
    return found


def operate(
    falls: Falls,
    events: Sequence[Event],
    threshold: float,
    refractory: int,
    tolerance: int,
) -> Operating:
    """Matches the detections at a threshold with the keywords.

    A detection matches the keyword in whose span it fires, extended by ``tolerance``
    frames at both ends. Further ones in the same span are not false alarms.
    """
    by_recording: dict[int, list[int]] = {}
    for number, event in enumerate(events):
        by_recording.setdefault(event.recording, []).append(number)
    first: dict[int, Detection] = {}
    false_alarms = 0
    for found in fire(falls, threshold, refractory):
        for number in by_recording.get(found.recording, ()):
            event = events[number]
            if event.start - tolerance <= found.frame < event.end + tolerance:
                first.setdefault(number, found)
                break
        else:
            false_alarms += 1
    pairs = [(events[number], found) for number, found in first.items()]
    ends = [(d.start, d.frame + 1, e.start, e.end) for e, d in pairs]
    return Operating(
        threshold,
        false_alarms,
        np.array([number not in first for number in range(len(events))]),
        np.array([iou(*four) for four in ends]),
        np.array([(abs(a - c) + abs(b - d)) / 2 for a, b, c, d in ends]),
    )


def trade_off(
    scores: np.ndarray,
    starts: np.ndarray,
    events: Sequence[Event],
    most_alarms: int,
    refractory: int,
    tolerance: int,
) -> list[Operating]:
    """The detection error trade-off, from the highest threshold down.

    Thresholds are infinity and the peaks of the score outside of keywords; the last
    one is the first that gives more than ``most_alarms`` false alarms. At each of these
    the peak itself alarms. A threshold just above the next lower peak gives, as a rule,
    the same alarms and may reject fewer keywords; it is not tried, so the rejects are
    upper figures.

    Args:
      scores: ``[recordings, frames]``.
      starts: first frames of the paths, likewise.
      events: the keywords.
      most_alarms: see above.
      refractory: see `fire`.
      tolerance: see `operate`.
    """
    outside = np.ones(scores.shape, bool)
    for event in events:
        first = max(0, event.start - tolerance)
        outside[event.recording, first : event.end + tolerance] = False
    falls = falls_of(scores, starts)
    before = np.pad(scores[:, :-1], ((0, 0), (1, 0)), constant_values=-np.inf)
    places = falls.recordings, falls.frames
    peaks = falls.scores[outside[places] & (falls.scores >= before[places])]
    curve = [operate(falls, events, np.inf, refractory, tolerance)]
    for threshold in np.unique(peaks)[::-1].tolist():
        curve.append(operate(falls, events, threshold, refractory, tolerance))
        if curve[-1].false_alarms > most_alarms:
            break
    return curve


def rejects_at(curve: Sequence[Operating], alarms: float) -> Operating:
    """The point of a curve with the fewest rejects among those within ``alarms``.

    Other thresholds may reject fewer, see `trade_off`.
    """
    within = [point for point in curve if point.false_alarms <= alarms]
    return min(within, key=lambda point: float(point.rejected.mean()))


def bootstrap_over_speakers(
    values: np.ndarray, speakers: Sequence[str], seed: int, draws: int = 1000
) -> tuple[float, float]:
    """The central 95 % of means of ``values`` over speakers drawn with replacement."""
    names, owner = np.unique(np.asarray(speakers), return_inverse=True)
    sums = np.bincount(owner, values, len(names))
    counts = np.bincount(owner, minlength=len(names))
    rows = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    means = sums[rows].sum(1) / counts[rows].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
