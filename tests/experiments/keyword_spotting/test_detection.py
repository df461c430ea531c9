"""Detections and error rates, counted by hand."""

import numpy as np
import pytest

from experiments.keyword_spotting.detection import (
    Detection,
    Event,
    bootstrap_over_speakers,
    falls_of,
    fire,
    iou,
    operate,
    rejects_at,
    trade_off,
)

# Two keywords in the first recording, one in the second. The scores peak at frames 2
# and 7 of the first (both keywords) and 4 (outside), and at 3 and 5 of the second,
# whose keyword, frames 5 and 6, scores less than what is outside of it.
SCORES = np.array(
    [
        [0, 1, 5, 2, 3, 0, 0, 4, 0, 0],
        [0, 0, 0, 2, 0, 1, 0, 0, 0, 0],
    ],
    float,
)
STARTS = np.array([[0, 0, 1, 1, 3, 3, 3, 6, 6, 6], [0, 0, 0, 1, 1, 5, 5, 5, 5, 5]])
FALLS = falls_of(SCORES, STARTS)
EVENTS = [Event(0, 1, 3, "a"), Event(0, 6, 9, "b"), Event(1, 5, 7, "a")]


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ((0, 10, 5, 15), 1 / 3),
        ((0, 10, 0, 10), 1.0),
        ((0, 5, 5, 10), 0.0),
        ((2, 4, 0, 8), 0.25),
    ],
)
def test_iou(intervals, expected):
    assert iou(*intervals) == pytest.approx(expected, rel=1e-12)


def test_the_detector_fires_at_peaks_and_rests():
    assert fire(falls_of(SCORES[:1], STARTS), 3.0, 1) == [
        Detection(0, 2, 1),
        Detection(0, 4, 3),
        Detection(0, 7, 6),
    ]
    assert fire(falls_of(SCORES[:1], STARTS), 3.0, 4) == [
        Detection(0, 2, 1),
        Detection(0, 7, 6),
    ]
    assert fire(falls_of(SCORES, STARTS), 5.5, 1) == []


def test_operating_point_by_hand():
    point = operate(FALLS, EVENTS, 2.0, refractory=1, tolerance=0)
    # Frames 3 and 4 of the recordings: 2 falls from 5, so no peak in the first.
    assert point.false_alarms == 2
    np.testing.assert_array_equal(point.rejected, [False, False, True])
    # Detected frames 1 to 2 for 1 to 2, and 6 to 7 for 6 to 8.
    np.testing.assert_allclose(point.iou, [1.0, 2 / 3])
    np.testing.assert_allclose(point.shift, [0.0, 0.5])


def test_trade_off_by_hand():
    curve = trade_off(SCORES, STARTS, EVENTS, 2, refractory=1, tolerance=0)
    found = [
        (point.threshold, point.false_alarms, point.rejected.sum()) for point in curve
    ]
    # At 3 both keywords of the first recording, at 2 no more of them, and at 0 zeros
    # are no peaks.
    assert found[:3] == [(np.inf, 0, 3), (3.0, 1, 1), (2.0, 2, 1)]
    assert rejects_at(curve, 0).rejected.sum() == 3
    assert rejects_at(curve, 1).rejected.sum() == 1


def test_bootstrap_draws_speakers_not_keywords():
    # One speaker's keywords are all missed and the other's none: means of two speakers
    # drawn with replacement are 0, 0.5 or 1.
    values = np.array([1.0, 1.0, 0.0, 0.0])
    assert bootstrap_over_speakers(values, ["a", "a", "b", "b"], 0) == (0.0, 1.0)
    assert bootstrap_over_speakers(np.ones(4), ["a", "a", "b", "b"], 0) == (1.0, 1.0)
