"""The decoder: log-domain scores of left-to-right paths through a keyword's states.

A path starts in the first state, stays or moves one state ahead at each frame, and ends
in the last. With emissions ``l_i(t)``, see `emissions`, and transition probabilities
``b`` its recursion is (Shrivastava et al., arXiv 2011.01151, section 2)::

    v_i(t) = max(v_i(t-1) + log b_ii, v_{i-1}(t-1) + log b_{i-1,i}) + l_i(t)

and the score of a window of T frames is ``v_C(T) / T``. The paper prints products of
probabilities, whose values cannot reach the margin of its loss; logarithms are this
project's interpretation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

IMPOSSIBLE = -1e30  # log-probability; finite, so that no gradient is NaN


class Transitions(NamedTuple):
    """Logarithms of transition probabilities, ``[states]`` each.

    Attributes:
      stay: ``log b_ii``.
      move: ``log b_{i,i+1}``; the last one is not used.
    """

    stay: jax.Array
    move: jax.Array


class OnlineScores(NamedTuple):
    """Scores of the best path that ends at each frame.

    Attributes:
      score: ``v_C / (t - start + 1)``, ``[..., frames]``.
      start: first frame of that path, int32; -1 where no path can end.
    """

    score: jax.Array
    start: jax.Array


def emissions(logits: jax.Array, log_priors: jax.Array, states: int) -> jax.Array:
    """``log softmax(logits)_i - log prior_i`` of the keyword's states.

    Args:
      logits: ``[..., classes]``; the keyword's states are the first classes.
      log_priors: ``[classes]``; zeros to use no priors.
      states: number of states of the keyword.
    """
    scaled = jax.nn.log_softmax(logits) - log_priors
    return scaled[..., :states]


def window_scores(
    emitted: jax.Array,
    transitions: Transitions,
    lengths: jax.Array,
    temperature: float = 0.0,
) -> jax.Array:
    """Scores of windows, ``v_C(T) / T``.

    Args:
      emitted: `emissions`, ``[windows, frames, states]``.
      transitions: transitions of the states.
      lengths: T of each window, ``[windows]``; later frames are ignored.
      temperature: τ of the soft maximum ``τ log(exp(a/τ) + exp(b/τ))``; zero for the
        maximum.

    Returns:
      ``[windows]``; about `IMPOSSIBLE` over T where T is below the number of states.
    """

    def step(before: jax.Array, emitted: jax.Array) -> tuple[jax.Array, jax.Array]:
        stayed = before + transitions.stay
        moved = _shifted(before + transitions.move, IMPOSSIBLE)
        if temperature:
            best = temperature * jnp.logaddexp(
                stayed / temperature, moved / temperature
            )
        else:
            best = jnp.maximum(stayed, moved)
        now = best + emitted
        return now, now[..., -1]

    by_frame = jnp.moveaxis(emitted, 1, 0)
    first = jnp.full_like(by_frame[0], IMPOSSIBLE).at[:, 0].set(by_frame[0, :, 0])
    _, later = jax.lax.scan(step, first, by_frame[1:], unroll=4)
    last_state = jnp.concatenate([first[None, :, -1], later])
    ends = jnp.take_along_axis(last_state, (lengths - 1)[None], axis=0)[0]
    return ends / lengths


def online_scores(emitted: jax.Array, transitions: Transitions) -> OnlineScores:
    """Scores of a continuous stream: a path may start at every frame.

    ``v_1(t) = max(v_1(t-1) + log b_11, 0) + l_1(t)``, the other states as in
    `window_scores`; the start of the path is carried along. ``v_C(t)`` is therefore the
    greatest over all windows that end at t.

    Args:
      emitted: `emissions`, ``[..., frames, states]``.
      transitions: transitions of the states.
    """

    def step(
        before: tuple[jax.Array, jax.Array, jax.Array], emitted: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], OnlineScores]:
        values, starts, frame = before
        stayed = values + transitions.stay
        moved = _shifted(values + transitions.move, 0.0)
        moves = moved > stayed
        starts = jnp.where(moves, _shifted(starts, frame), starts)
        values = jnp.where(moves, moved, stayed) + emitted
        # Sums of impossible terms must not overflow in a long stream.
        values = jnp.maximum(values, IMPOSSIBLE)
        score = values[..., -1] / (frame - starts[..., -1] + 1)
        return (values, starts, frame + 1), OnlineScores(score, starts[..., -1])

    by_frame = jnp.moveaxis(emitted, -2, 0)
    values = jnp.full_like(by_frame[0], IMPOSSIBLE)
    starts = jnp.full(values.shape, -1, jnp.int32)
    _, found = jax.lax.scan(step, (values, starts, jnp.int32(0)), by_frame)
    return OnlineScores(*(jnp.moveaxis(x, 0, -1) for x in found))


def best_paths(emitted: jax.Array, transitions: Transitions) -> jax.Array:
    """The best path through all states of a chain, by Viterbi's algorithm.

    Args:
      emitted: scores of the states of the chain, ``[windows, frames, states]``.
      transitions: transitions of the chain.

    Returns:
      The state at each frame, ``[windows, frames]``, int32.
    """

    def forward(before: jax.Array, emitted: jax.Array) -> tuple[jax.Array, jax.Array]:
        stayed = before + transitions.stay
        moved = _shifted(before + transitions.move, IMPOSSIBLE)
        return jnp.maximum(stayed, moved) + emitted, moved > stayed

    def backward(state: jax.Array, moves: jax.Array) -> tuple[jax.Array, jax.Array]:
        came = jnp.take_along_axis(moves, state[:, None], axis=1)[:, 0]
        earlier = state - came.astype(jnp.int32)
        return earlier, earlier

    by_frame = jnp.moveaxis(emitted, 1, 0)
    first = jnp.full_like(by_frame[0], IMPOSSIBLE).at[:, 0].set(by_frame[0, :, 0])
    _, moves = jax.lax.scan(forward, first, by_frame[1:])
    last = jnp.full(emitted.shape[0], emitted.shape[2] - 1, jnp.int32)
    _, earlier = jax.lax.scan(backward, last, moves, reverse=True)
    return jnp.concatenate([earlier, last[None]]).T


def _shifted(values: jax.Array, first: float | jax.Array) -> jax.Array:
    """Each state's value at the next state; ``first`` at the first."""
    fill = jnp.broadcast_to(jnp.asarray(first, values.dtype), values[..., :1].shape)
    return jnp.concatenate([fill, values[..., :-1]], axis=-1)
