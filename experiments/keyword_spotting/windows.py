"""Windows for training by the end metric: positives, negatives and hard negatives."""

from typing import NamedTuple

import numpy as np

from experiments.data.clips import SILENCE
from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.detection import iou
from experiments.keyword_spotting.mixing import Examples

KEYWORD, OTHER = 1, 0
TRIES = 100


class Windows(NamedTuple):
    """Windows of features.

    Attributes:
      features: ``[windows, frames + 2 context, coefficients + 1]``; the last
        coefficient is one in the frames of the window, which come first after the
        context, and zero after them.
      labels: `KEYWORD` or `OTHER`, ``[windows]``, int32.
    """

    features: np.ndarray
    labels: np.ndarray


def sample_windows(
    examples: Examples,
    keyword_spans: np.ndarray,
    mined: np.ndarray,
    config: KeywordConfig,
    seed: int,
    *,
    hard_negatives: bool = True,
    iou_sampling: bool = True,
) -> Windows:
    """Draws ``config.positives`` windows with the keyword, and windows without it.

    Positives overlap a keyword by at least ``least_iou``. Of the other kinds there are
    ``config.windows`` each: windows that overlap a keyword by at most ``greatest_iou``;
    a keyword's window cut in two with its halves swapped; the speech of other words,
    twice; and windows anywhere in other words or noise. All of ``mined`` are taken.

    Args:
      examples: training clips in noise.
      keyword_spans: spans of the keyword in the examples that hold it, in their order.
      mined: windows without the keyword that a detector scores highest, as rows of
        example, first frame and frame after the last, ``[windows, 3]``.
      config: settings of the study.
      seed: seed of the draw.
      hard_negatives: whether to draw swapped halves, or else other words.
      iou_sampling: whether windows with the keyword vary; otherwise its span is the
        positive window, and other words replace windows of little overlap.
    """
    rng = np.random.default_rng(seed)
    is_keyword = examples.words == config.keyword
    rows = np.flatnonzero(is_keyword)
    others = np.flatnonzero(~is_keyword & (examples.words != SILENCE))
    elsewhere = np.flatnonzero(~is_keyword)
    lengths = np.minimum(np.diff(keyword_spans, axis=1)[:, 0], config.window_frames)
    cut = _Cutter(examples.features, config)
    frames = examples.features.shape[1]

    def length() -> int:
        return int(rng.choice(lengths))

    def word() -> tuple[int, int, int]:
        return _word(rng, others, examples.spans, length(), frames)

    for number in range(config.positives):
        which = int(rng.integers(len(rows)))
        row, span = int(rows[which]), keyword_spans[which]
        positive = _near(rng, span, config) if iou_sampling else (span[0], span[1])
        cut.add((row, *positive), KEYWORD)
        if number >= config.windows:
            continue
        if iou_sampling:
            cut.add((row, *_away(rng, span, length(), frames, config)), OTHER)
        else:
            cut.add(word(), OTHER)
        if hard_negatives:
            cut.add((row, *positive), OTHER, swapped=True)
        else:
            cut.add(word(), OTHER)
        for _ in range(2):
            cut.add(word(), OTHER)
        size = length()
        start = int(rng.integers(frames - size + 1))
        cut.add((int(rng.choice(elsewhere)), start, start + size), OTHER)
    for row, start, end in mined.tolist():
        cut.add((row, start, end), OTHER)
    return cut.windows()


class _Cutter:
    """Collects windows."""

    def __init__(self, features: np.ndarray, config: KeywordConfig):
        context = config.context
        self._features = np.pad(
            features, ((0, 0), (context, context), (0, 0)), mode="edge"
        )
        self._config = config
        self._found: list[np.ndarray] = []
        self._labels: list[int] = []

    def add(
        self, place: tuple[int, int, int], label: int, *, swapped: bool = False
    ) -> None:
        """Cuts a window; swapped halves get the context of the whole window."""
        row, start, end = place
        context, longest = self._config.context, self._config.window_frames
        end = min(end, start + longest)
        cut = self._features[row, start : end + 2 * context]
        if swapped:
            middle = context + (end - start) // 2
            cut = np.concatenate(
                [
                    cut[:context],
                    cut[middle : len(cut) - context],
                    cut[context:middle],
                    cut[len(cut) - context :],
                ]
            )
        window = np.zeros((longest + 2 * context, cut.shape[1] + 1), np.float32)
        window[: len(cut), :-1] = cut
        window[context : context + end - start, -1] = 1
        self._found.append(window)
        self._labels.append(label)

    def windows(self) -> Windows:
        return Windows(np.stack(self._found), np.array(self._labels, np.int32))


def _near(
    rng: np.random.Generator, span: np.ndarray, config: KeywordConfig
) -> tuple[int, int]:
    """A window whose overlap with the span is at least ``least_iou``."""
    reach = int((1 - config.least_iou) * (span[1] - span[0])) + 1
    for _ in range(TRIES):
        start, end = span + rng.integers(-reach, reach + 1, size=2)
        if start >= 0 and iou(start, end, *span) >= config.least_iou:
            return int(start), int(end)
    return int(span[0]), int(span[1])


def _away(
    rng: np.random.Generator,
    span: np.ndarray,
    length: int,
    frames: int,
    config: KeywordConfig,
) -> tuple[int, int]:
    """A window whose overlap with the span is at most ``greatest_iou``."""
    for _ in range(TRIES):
        start = int(rng.integers(frames - length + 1))
        if iou(start, start + length, *span) <= config.greatest_iou:
            return start, start + length
    return 0, max(1, int(span[0]))


def _word(
    rng: np.random.Generator,
    rows: np.ndarray,
    spans: np.ndarray,
    length: int,
    frames: int,
) -> tuple[int, int, int]:
    """The speech of a random clip; half of the time a window of ``length`` in it.

    A window that is longer than the speech contains it. It lies within the ``frames``
    of the clip.
    """
    row = int(rng.choice(rows))
    start, end = spans[row]
    if rng.random() < 0.5:
        return row, int(start), int(end)
    first = int(rng.integers(min(start, end - length), max(start, end - length) + 1))
    first = min(max(0, first), frames - length)
    return row, first, first + length
