"""Batches of 4 of 256: a run beside NumPy in float64, how the best rate counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.studies import tiny_batches
from experiments.studies.tiny_batches import BATCH, EXAMPLES, SGD, Method


def loss_and_gradients(params, inputs, classes):
    hidden = np.tanh(inputs @ params["w"] + params["b"])
    logits = hidden @ params["v"]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    picked = np.arange(len(inputs)), classes
    loss = -np.mean(np.log(shares[picked]))
    shares[picked] -= 1
    back = shares / len(inputs)
    into = (back @ params["v"].T) * (1 - hidden**2)
    gradients = {"w": inputs.T @ into, "b": into.sum(axis=0), "v": hidden.T @ back}
    return loss, gradients


def test_a_run_is_that_of_numpy():
    steps, seed, rate = 5, 3, 0.5
    inputs, classes, start = jax.tree.map(np.asarray, tiny_batches._problem())
    start = {name: leaf.astype(np.float64) for name, leaf in start.items()}
    params, average, level, largest = start, start, 0.0, 0.0
    for count in range(steps):
        key = jax.random.fold_in(jax.random.key(seed), count)
        rows = np.asarray(jax.random.choice(key, EXAMPLES, (BATCH,), replace=False))
        value, gradients = loss_and_gradients(params, inputs[rows], classes[rows])
        params = {name: leaf - rate * gradients[name] for name, leaf in params.items()}
        share = 6 / (count + 6)
        average = {
            name: (1 - share) * leaf + share * params[name]
            for name, leaf in average.items()
        }
        level = value if count == 0 else 0.8 * level + 0.2 * value
        largest = max(largest, level)
    first, last, averaged = (
        loss_and_gradients(where, inputs, classes)[0]
        for where in (start, params, average)
    )
    assert last < 0.95 * first
    assert abs(averaged / last - 1) > 0.01
    found = tiny_batches.run(SGD, jnp.tanh, steps, seed, jnp.float32(rate))
    # Roundings of 2^-24 in some ten operations of each of five steps.
    expected = np.array([last, averaged, largest]) / first
    np.testing.assert_allclose(np.array(found), expected, rtol=50 * 2**-24)


def test_the_best_rate_counts_for_each_draw_and_a_nan_never():
    rates = (0.3, 0.6, float("nan"))
    method = Method("", lambda _steps, rate: optax.sgd(rate), rates)
    last, largest = tiny_batches.losses(method, "tanh", 30, range(8))
    alone = [
        tiny_batches.losses(method._replace(rates=(rate,)), "tanh", 30, range(8))
        for rate in rates[:2]
    ]
    small, large = (each for each, _ in alone)
    assert 0 < np.sum(small < large) < 8
    # Programs of another size round differently, in some ten operations of a step.
    rtol = 300 * 2**-24
    np.testing.assert_allclose(last, np.minimum(small, large), rtol=rtol)
    usual = alone[int(np.sum(small < large) < 4)]
    assert largest == pytest.approx(usual[1], rel=rtol)


def test_one_rate_for_all_draws_is_that_which_is_best_for_most():
    method = Method("", lambda _steps, rate: optax.sgd(rate), (0.3, 0.6))
    best, _ = tiny_batches.losses(method, "tanh", 30, range(8))
    one, _ = tiny_batches.losses(method._replace(one_rate=True), "tanh", 30, range(8))
    # Eight draws of which neither rate is best for all.
    assert 4 <= np.sum(one == best) < 8
    assert np.all(one >= best)


def test_a_table_of_medians_of_runs_beyond_twice_and_of_the_greatest(monkeypatch):
    still = Method("still", lambda _steps, _rate: optax.set_to_zero())
    monkeypatch.setattr(tiny_batches, "METHODS", (SGD, still))
    given = tiny_batches.TinyBatchesArguments(seeds=2, lengths=(2, 500))
    sgd, nothing = tiny_batches.table(given).rows
    assert sgd[:6] == ("SGD", "1.00", "1.00", "0", "0", "1")
    of_both = [
        tiny_batches.losses(SGD, name, 500, range(2))[0] for name in ("tanh", "ReLU")
    ]
    ratios = 1 / np.concatenate(of_both)
    assert nothing[2] == f"{np.median(ratios):.2f}"
    assert nothing[4] == "4"  # both draws of both networks
    assert nothing[5] == f"{np.max(ratios):.3g}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0"], "error: seeds=0 must be at least 1"),
        (["--lengths", "60", "0"], "error: lengths=0 must be at least 1"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(SystemExit, match=message):
        tiny_batches.main(arguments)
