"""Windows: their overlap with the keyword, halves that are swapped, and labels."""

import dataclasses

import numpy as np
import pytest

from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.detection import iou
from experiments.keyword_spotting.mixing import Examples
from experiments.keyword_spotting.windows import KEYWORD, OTHER, sample_windows

CONFIG = KeywordConfig(
    keyword="up", context=3, window_frames=50, positives=20, windows=20
)
SPANS = np.array([[30, 70]])


@pytest.fixture(scope="module")
def examples():
    """Two clips whose feature is the number of the frame; 1000 more in the second."""
    features = np.arange(100.0, dtype=np.float32)[None, :, None]
    return Examples(
        np.concatenate([features, features + 1000]),
        np.array([[30, 70], [10, 60]]),
        np.array(["up", "go"]),
    )


def frames_of(windows):
    """The features of the frames of each window, without context."""
    return [
        window[3:-3, 0][window[3:-3, -1] == 1].astype(int).tolist()
        for window in windows.features
    ]


def sample(examples, **choices):
    mined = np.array([[1, 5, 25]])
    return sample_windows(examples, SPANS, mined, CONFIG, 0, **choices)


def test_each_kind_of_window(examples):
    windows = sample(examples)
    found = frames_of(windows)
    assert len(found) == 6 * 20 + 1
    overlaps = []
    for number in range(20):
        positive, away, swapped, *others = found[6 * number : 6 * number + 6]
        labels = windows.labels[6 * number : 6 * number + 6].tolist()
        assert labels == [KEYWORD] + 5 * [OTHER]
        assert positive == list(range(positive[0], positive[-1] + 1))
        overlaps.append(iou(positive[0], positive[-1] + 1, 30, 70))
        assert iou(away[0], away[-1] + 1, 30, 70) <= 0.5
        half = len(positive) // 2
        assert swapped == positive[half:] + positive[:half]
        assert all(frame >= 1000 for other in others for frame in other)
    assert min(overlaps) >= 0.95
    assert min(overlaps) < 1.0  # they vary
    assert found[-1] == list(range(1005, 1025))
    assert windows.labels[-1] == OTHER


def test_windows_of_words_at_the_end_stay_in_their_clip(examples):
    late = examples._replace(spans=np.array([[30, 70], [85, 98]]))
    for number, found in enumerate(frames_of(sample(late))[:-1]):
        if number % 6 > 2:
            assert found == list(range(found[0], found[-1] + 1))
            # The speech, or the 40 frames of a keyword; its last frame is 1099.
            assert len(found) in (13, 40)
            assert 1000 <= found[0] <= found[-1] <= 1099


def test_context_precedes_the_window(examples):
    window = sample(examples, iou_sampling=False).features[0]
    np.testing.assert_array_equal(window[:4, 0], [27, 28, 29, 30])
    np.testing.assert_array_equal(window[42:46, 0], [69, 70, 71, 72])
    assert not window[46:].any()
    np.testing.assert_array_equal(window[:, -1], [0] * 3 + [1] * 40 + [0] * 13)


def test_ablations_keep_the_number_of_windows(examples):
    plain = frames_of(sample(examples, iou_sampling=False, hard_negatives=False))
    assert len(plain) == 6 * 20 + 1
    for number in range(20):
        assert plain[6 * number] == list(range(30, 70))
        for other in plain[6 * number + 1 : 6 * number + 6]:
            assert min(other) >= 1000


def test_positives_beyond_the_other_kinds(examples):
    config = dataclasses.replace(CONFIG, positives=7, windows=2)
    found = sample_windows(examples, SPANS, np.zeros((0, 3), int), config, 0)
    assert found.labels.tolist() == 2 * [KEYWORD, *5 * [OTHER]] + 5 * [KEYWORD]
