"""A transformer of one layer on the text of a random Markov chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

CHARACTERS, LENGTH, WIDTH, SEQUENCES = 12, 8, 12, 64


def _text(rng):
    chances = rng.dirichlet(np.full(CHARACTERS, 0.1), size=CHARACTERS)
    text = rng.integers(CHARACTERS, size=[SEQUENCES, 1])
    for _ in range(LENGTH):
        draws = [rng.choice(CHARACTERS, p=chances[row[-1]]) for row in text]
        text = np.column_stack([text, draws])
    return text


def _params(rng):
    def matrix(rows, columns):
        values = rng.normal(size=[rows, columns]) / rows**0.5
        return jnp.asarray(values, jnp.float32)

    square = {name: matrix(WIDTH, WIDTH) for name in ("query", "key", "value", "mixed")}
    return square | {
        "characters": matrix(CHARACTERS, WIDTH),
        "places": matrix(LENGTH, WIDTH),
        "up": matrix(WIDTH, 2 * WIDTH),
        "down": matrix(2 * WIDTH, WIDTH),
        "logits": matrix(WIDTH, CHARACTERS),
        "first_scale": jnp.ones(WIDTH),
        "second_scale": jnp.ones(WIDTH),
    }


_RNG = np.random.default_rng(1)
TEXT = jnp.asarray(_text(_RNG))
PARAMS = _params(_RNG)


def _normed(x, scale):
    return scale * x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def loss(params, text):
    """Cross entropy of each character after the first, given those before it."""
    x = params["characters"][text[:, :-1]] + params["places"]
    h = _normed(x, params["first_scale"])
    scores = (h @ params["query"]) @ jnp.swapaxes(h @ params["key"], 1, 2) / WIDTH**0.5
    past = jnp.tril(jnp.ones([LENGTH, LENGTH], bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -1e9))
    x = x + weights @ (h @ params["value"]) @ params["mixed"]
    h = _normed(x, params["second_scale"])
    x = x + jax.nn.gelu(h @ params["up"]) @ params["down"]
    losses = optax.softmax_cross_entropy_with_integer_labels(
        x @ params["logits"], text[:, 1:]
    )
    return jnp.mean(losses)
