"""The decoder against all paths of small chains."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.keyword_spotting import decoder

FRAMES, STATES = 6, 3
# Sums of at most a dozen float32 terms of size one.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def paths(frames, states):
    """All paths from the first state to the last that stay or move one ahead."""
    for moves in itertools.combinations(range(1, frames), states - 1):
        yield [sum(frame >= move for move in moves) for frame in range(frames)]


def total(emitted, stay, move, path):
    value = emitted[0, path[0]]
    for frame in range(1, len(path)):
        before, now = path[frame - 1], path[frame]
        value += (stay[now] if before == now else move[before]) + emitted[frame, now]
    return value


@pytest.fixture(scope="module")
def chain():
    rng = np.random.default_rng(3)
    emitted = rng.normal(size=(4, FRAMES, STATES))
    stay, move = np.log([0.7, 0.4, 0.6]), np.log([0.3, 0.6, 0.4])
    return emitted, stay, move


def in_jax(chain):
    emitted, stay, move = (jnp.asarray(x, jnp.float32) for x in chain)
    return emitted, decoder.Transitions(stay, move)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_window_scores_are_those_of_all_paths(chain, temperature):
    lengths = np.array([6, 5, 3, 4])
    found = decoder.window_scores(*in_jax(chain), jnp.asarray(lengths), temperature)
    emitted, stay, move = chain
    for row, length in enumerate(lengths):
        totals = np.array(
            [total(emitted[row], stay, move, path) for path in paths(length, STATES)]
        )
        best = totals.max()
        if temperature:
            # A soft maximum of sums distributes over the recursion.
            best += temperature * np.log(np.exp((totals - best) / temperature).sum())
        np.testing.assert_allclose(found[row], best / length, **CLOSE)


def test_a_window_shorter_than_the_keyword_has_no_path(chain):
    found = decoder.window_scores(*in_jax(chain), jnp.full(4, STATES - 1))
    assert (np.asarray(found) < decoder.IMPOSSIBLE / FRAMES).all()


def test_the_gradient_is_the_best_path(chain):
    emitted, transitions = in_jax(chain)
    lengths = jnp.full(4, FRAMES)
    gradient = jax.grad(lambda e: decoder.window_scores(e, transitions, lengths).sum())(
        emitted
    )
    expected = np.zeros_like(chain[0])
    for row in range(4):
        best = max(
            paths(FRAMES, STATES),
            key=lambda path: total(chain[0][row], *chain[1:], path),
        )
        expected[row, np.arange(FRAMES), best] = 1 / FRAMES
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        decoder.best_paths(emitted, transitions), expected.argmax(-1)
    )


def test_online_scores_are_those_of_the_best_window(chain):
    emitted, transitions = in_jax(chain)
    online = decoder.online_scores(emitted, transitions)
    for row, end in itertools.product(range(4), range(FRAMES)):
        totals = {
            start: max(
                total(chain[0][row, start : end + 1], *chain[1:], path)
                for path in paths(end + 1 - start, STATES)
            )
            for start in range(end + 2 - STATES)
        }
        if not totals:
            assert online.score[row, end] < decoder.IMPOSSIBLE / 100
            continue
        best = max(totals, key=totals.get)
        length = end + 1 - best
        assert online.start[row, end] == best
        np.testing.assert_allclose(
            online.score[row, end], totals[best] / length, **CLOSE
        )


def test_a_long_stream_without_the_keyword_stays_finite():
    emitted = jnp.full((500, STATES), -1e29)
    transitions = decoder.Transitions(jnp.zeros(STATES), jnp.zeros(STATES))
    assert np.isfinite(decoder.online_scores(emitted, transitions).score).all()


def test_emissions_are_log_posteriors_less_log_priors():
    logits, priors = np.array([[0.5, -1.0, 2.0]]), np.log([0.2, 0.3, 0.5])
    found = decoder.emissions(jnp.asarray(logits), jnp.asarray(priors), 2)
    posterior = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(found, np.log(posterior[:, :2]) - priors[:2], rtol=1e-5)
