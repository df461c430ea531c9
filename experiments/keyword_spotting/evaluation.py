"""The end metric of a network: its detector on recordings."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.decoder import (
    OnlineScores,
    emissions,
    online_scores,
)
from experiments.keyword_spotting.detection import (
    Operating,
    bootstrap_over_speakers,
    rejects_at,
    trade_off,
)
from experiments.keyword_spotting.mixing import Recordings
from experiments.keyword_spotting.model import FrameNetwork
from experiments.keyword_spotting.states import Statistics
from experiments.records.files import Line

PyTree = Any

ALARMS_PER_HOUR = (1, 5, 15)
BATCH = 16  # recordings whose scores are computed together
EXAMPLES = 512  # likewise of short examples


class Detector:
    """The online detector of a network architecture, compiled once.

    Args:
      network: network of a frame.
      config: settings of the study.
      with_priors: whether posteriors are divided by the priors.
    """

    def __init__(
        self, network: FrameNetwork, config: KeywordConfig, *, with_priors: bool = True
    ):
        self._config = config
        self._scores: Callable[..., OnlineScores] = jax.jit(self._scores_of)
        self._network, self._with_priors = network, with_priors

    def _scores_of(
        self, params: PyTree, features: jax.Array, statistics: Statistics
    ) -> OnlineScores:
        logits = self._network.apply({"params": params}, features)
        priors = statistics.log_priors if self._with_priors else jnp.zeros([])
        emitted = emissions(logits, priors, self._config.states)
        return online_scores(emitted, statistics.transitions)

    def curve(
        self, params: PyTree, statistics: Statistics, recordings: Recordings
    ) -> list[Operating]:
        """The detection error trade-off on recordings, up to the last target."""
        return trade_off(
            *self._on_host(params, statistics, recordings.features, BATCH),
            recordings.events,
            int(ALARMS_PER_HOUR[-1] * recordings.hours),
            self._config.refractory,
            self._config.tolerance,
        )

    def best_windows(
        self, params: PyTree, statistics: Statistics, features: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The window of each example that the detector scores highest.

        Returns:
          First frames and frames after the last, ``[examples, 2]``, and the scores.
        """
        scores, starts = self._on_host(params, statistics, features, EXAMPLES)
        rows, ends = np.arange(len(scores)), scores.argmax(axis=1)
        return np.stack([starts[rows, ends], ends + 1], axis=1), scores[rows, ends]

    def _on_host(
        self, params: PyTree, statistics: Statistics, features: np.ndarray, batch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and first frames of paths, ``[recordings, frames]``, in batches."""
        padded = with_context(features, self._config.context)
        parts = []
        for start in range(0, len(padded), batch):
            part = padded[start : start + batch]
            full = np.pad(part, ((0, batch - len(part)), (0, 0), (0, 0)))
            found = self._scores(params, jnp.asarray(full), statistics)
            parts.append([np.asarray(x)[: len(part)] for x in found])
        scores, starts = (np.concatenate(x) for x in zip(*parts, strict=True))
        return scores, starts


def with_context(features: np.ndarray, context: int) -> np.ndarray:
    """Features with the first and last frame repeated ``context`` times."""
    return np.pad(features, ((0, 0), (context, context), (0, 0)), mode="edge")


def rejects(curve: list[Operating], hours: float) -> list[float]:
    """False reject rates at `ALARMS_PER_HOUR`."""
    return [
        float(rejects_at(curve, alarms * hours).rejected.mean())
        for alarms in ALARMS_PER_HOUR
    ]


def figures(curve: list[Operating], recordings: Recordings, seed: int) -> Line:
    """All that the report needs of a curve.

    False reject rates at `ALARMS_PER_HOUR` with 95 % bands over speakers, the overlap
    and the shift of detected keywords at the second of them, and the curve.
    """
    hours = recordings.hours
    speakers = [event.speaker for event in recordings.events]
    points = [rejects_at(curve, alarms * hours) for alarms in ALARMS_PER_HOUR]
    middle = points[1]
    detected = len(middle.iou) > 0
    return {
        "rejects": rejects(curve, hours),
        "bands": [
            bootstrap_over_speakers(point.rejected.astype(float), speakers, seed)
            for point in points
        ],
        "thresholds": [min(point.threshold, 1e9) for point in points],
        "iou": float(middle.iou.mean()) if detected else 0.0,
        "shift_frames": float(middle.shift.mean()) if detected else None,
        "curve_alarms": [point.false_alarms / hours for point in curve],
        "curve_rejects": [float(point.rejected.mean()) for point in curve],
        "hours": hours,
        "keywords": len(recordings.events),
    }
