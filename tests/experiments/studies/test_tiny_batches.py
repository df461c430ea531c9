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


def test_a_loss_that_is_not_finite_is_infinite():
    method = Method("", lambda _steps, rate: optax.sgd(rate), (0.3, float("nan")))
    last, largest = tiny_batches.losses(method, "tanh", 30, range(8))
    assert last.shape == largest.shape == (8, 2)
    assert np.all(last[:, 0] < 1)
    assert np.all(last[:, 1] == np.inf)
    assert np.all(largest[:, 1] == np.inf)


@pytest.fixture(scope="module")
def of_sgd():
    return [tiny_batches.losses(SGD, name, 500, range(4)) for name in ("tanh", "ReLU")]


def test_a_method_has_the_rate_of_the_least_mean_and_sgd_one_for_each_draw(of_sgd):
    rates = SGD.rates[-3:-1]
    found = tiny_batches.standing(SGD._replace(rates=rates), 500, range(4))
    means, ratios, peaks = [], [], []
    for last, largest in of_sgd:
        of_method = last[:, -3:-1]
        best = int(np.mean(of_method[:, 0]) > np.mean(of_method[:, 1]))
        means.append(np.mean(of_method[:, best]) / np.min(np.mean(last, axis=0)))
        ratios.extend(of_method[:, best] / np.min(last, axis=1))
        peaks.append(np.max(largest[:, best - 3]))
    # Programs of another size round differently, in some ten operations of each of 500
    # steps that do not enlarge them.
    rtol = 5000 * 2**-24
    assert found.mean == pytest.approx(max(means), rel=rtol)
    np.testing.assert_allclose(found.ratios, ratios, rtol=rtol)
    assert found.largest == pytest.approx(max(peaks), rel=rtol)


def test_a_table_of_means_of_runs_beyond_twice_and_of_the_greatest(monkeypatch, of_sgd):
    still = Method("still", lambda _steps, _rate: optax.set_to_zero())
    monkeypatch.setattr(tiny_batches, "METHODS", (SGD, still))
    given = tiny_batches.TinyBatchesArguments(seeds=4, lengths=(2, 500))
    sgd, nothing = tiny_batches.table(given).rows
    assert sgd[:4] == ("SGD, best rate", "1.00", "1.00", "0")
    means = [np.min(np.mean(last, axis=0)) for last, _ in of_sgd]
    assert nothing[2] == f"{1 / min(means):.2f}"
    assert nothing[3:5] == ("0", "8")  # all draws of both networks
    least = min(np.min(last) for last, _ in of_sgd)
    assert nothing[5] == f"{1 / least:.3g}"


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
