"""States of frames: the span of the speech, uniform division, forced alignment."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.speech_features import FeatureShape
from experiments.keyword_spotting.decoder import Transitions, best_paths

QUIET = 0.3  # part of the range of a clip's energies in dB below which is no speech
LONGEST_PAUSE = 12  # frames inside a word, such as the closure before a stop


class Statistics(NamedTuple):
    """What the decoder needs besides the network.

    Attributes:
      transitions: transitions of the keyword's states.
      log_priors: logarithms of the priors of all classes, ``[classes]``.
    """

    transitions: Transitions
    log_priors: jax.Array


def speech_span(samples: np.ndarray, shape: FeatureShape) -> tuple[int, int]:
    """First frame and frame after the last of the speech in a clip, by its energy.

    The span of the frames within the upper 70 % of the clip's range of energies in dB,
    including short pauses; of several such spans the one with the most energy.
    """
    count = shape.frames(len(samples))
    rows = np.arange(count)[:, None] * shape.hop + np.arange(shape.window)
    power = np.mean(np.square(samples[rows]), axis=1)
    decibels = 10 * np.log10(power + 1e-9)
    low, high = np.quantile(decibels, 0.05), decibels.max()
    loud = np.flatnonzero(decibels >= low + QUIET * (high - low))
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > LONGEST_PAUSE) + 1)
    best = max(groups, key=lambda group: float(power[group].sum()))
    return int(best[0]), int(best[-1]) + 1


def uniform_states(
    spans: np.ndarray, is_keyword: np.ndarray, frames: int, states: int
) -> np.ndarray:
    """Labels before any alignment: the states divide the keyword's span equally.

    Args:
      spans: spans of the speech, ``[examples, 2]``.
      is_keyword: ``[examples]``.
      frames: frames per example.
      states: number of states of the keyword.

    Returns:
      ``[examples, frames]``, int32: a state, ``states`` for silence, or ``states + 1``
      for other words.
    """
    frame = np.arange(frames)
    start, end = spans[:, :1], spans[:, 1:]
    part = (frame - start) * states // np.maximum(end - start, 1)
    speech = (frame >= start) & (frame < end)
    labels = np.where(is_keyword[:, None], part, states + 1)
    return np.where(speech, labels, states).astype(np.int32)


def aligned_states(
    log_posteriors: jax.Array, statistics: Statistics, states: int
) -> np.ndarray:
    """Labels of keyword clips by forced alignment: silence, all states, silence.

    Args:
      log_posteriors: ``[clips, frames, classes]``.
      statistics: transitions and priors; staying in silence and leaving it both have
        the log-probability 0.
      states: number of states of the keyword.
    """
    scaled = log_posteriors - statistics.log_priors
    silence = scaled[..., states : states + 1]
    chain = jnp.concatenate([silence, scaled[..., :states], silence], axis=-1)
    edge = jnp.zeros(1)
    path = np.asarray(
        best_paths(
            chain,
            Transitions(
                jnp.concatenate([edge, statistics.transitions.stay, edge]),
                jnp.concatenate([edge, statistics.transitions.move, edge]),
            ),
        )
    )
    return np.where((path == 0) | (path == states + 1), states, path - 1).astype(
        np.int32
    )


def spans_of(labels: np.ndarray, states: int) -> np.ndarray:
    """First frame and frame after the last of the keyword's states, ``[clips, 2]``."""
    inside = labels < states
    last = inside.shape[1] - np.argmax(inside[:, ::-1], axis=1)
    return np.stack([np.argmax(inside, axis=1), last], axis=1)


def statistics_of(
    labels: np.ndarray, is_keyword: np.ndarray, states: int
) -> Statistics:
    """Priors from all labels, transitions from the mean durations of states.

    A state of mean duration D stays with probability ``1 - 1 / D``. Counts start at
    one, so that no logarithm is infinite.
    """
    counts = np.bincount(labels.reshape(-1), minlength=states + 2) + 1.0
    in_keywords = np.bincount(labels[is_keyword].reshape(-1), minlength=states + 2)[
        :states
    ]
    duration = (in_keywords + 2.0) / (is_keyword.sum() + 1.0)
    duration = np.maximum(duration, 1.01)
    return Statistics(
        Transitions(
            jnp.asarray(np.log(1 - 1 / duration), jnp.float32),
            jnp.asarray(np.log(1 / duration), jnp.float32),
        ),
        jnp.asarray(np.log(counts / counts.sum()), jnp.float32),
    )
