"""`paper_schedule`: its numbers, its decays, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import paper_schedule


def test_is_the_schedule_of_the_paper():
    # Batch 2048 of 50,000 images, 200 epochs: max .8, 4882 steps in the paper's table.
    steps_per_epoch = 50_000 / 2048
    schedule = paper_schedule(0.8, steps_per_epoch, init_value=0.1)
    warmup = 25 * steps_per_epoch
    counts = np.arange(round(200 * steps_per_epoch))
    left = np.clip(1 - counts / warmup, 0, 1)
    expected = 0.8 - (0.8 - 0.1) * np.sqrt(left)
    for epoch in (102, 153):
        expected[counts >= round(epoch * steps_per_epoch)] *= 0.1
    actual = jax.vmap(schedule)(jnp.asarray(counts))
    # sqrt(1 - t/T) near t = T amplifies float32 rounding to sqrt(2^-24).
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.7 * 2.0**-12)
    assert len(counts) == 4883
    np.testing.assert_allclose(schedule(0), 0.1, rtol=1e-6)


def test_without_warmup():
    schedule = paper_schedule(0.4, 10, warmup_epochs=0, decay_epochs=(128,))
    assert schedule(0) == np.float32(0.4)
    np.testing.assert_allclose(schedule(1280), 0.04, rtol=1e-6)


def test_two_decays_at_the_same_step_are_two():
    schedule = paper_schedule(1.0, 1, warmup_epochs=0, decay_epochs=(1, 1.2))
    np.testing.assert_allclose(schedule(5), 0.01, rtol=1e-6)


def test_decays_by_the_factor_that_is_given():
    schedule = paper_schedule(
        0.4, 10, warmup_epochs=0, decay_epochs=(128,), decay_factor=0.5
    )
    found = [schedule(step) for step in (1279, 1280)]
    np.testing.assert_allclose(found, [0.4, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"max_value": 0.0}, ValueError, "max_value=0.0 must be finite"),
        ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch=0 must be finite"),
        ({"init_value": -0.1}, ValueError, "init_value=-0.1 must be finite and not"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs=-1 must be finite and not"),
        ({"decay_factor": 0.0}, ValueError, "decay_factor=0.0 must be finite and gr"),
        (
            {"decay_epochs": (9, 3)},
            ValueError,
            r"decay_epochs=\(9, 3\) must be positive and in increasing order",
        ),
        ({"decay_epochs": (0, 3)}, ValueError, r"decay_epochs=\(0, 3\) must be pos"),
        ({"decay_epochs": 3}, TypeError, "decay_epochs=3 is a int"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        paper_schedule(**{"max_value": 0.1, "steps_per_epoch": 5} | kwargs)
