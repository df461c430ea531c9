import pytest

from experiments import schedules


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Steps 0, 4, 8, 16 and 32 of 40; the paper's warm-up takes 5 of them and its
        # decays come at 20.4 and 30.6.
        ("constant", [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("cosine", [2.0, 1.951057, 1.809017, 1.309017, 0.190983]),
        ("paper", [0.0, 2 * (1 - 0.2**0.5), 2.0, 2.0, 0.02]),
    ],
)
def test_schedules(name, expected):
    schedule = schedules.build(name, 2.0, 40)
    values = [float(schedule(step)) for step in (0, 4, 8, 16, 32)]
    assert values == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Ten of 40 steps rise, from .2 to 2; step 25 is half of what is left.
        ("constant", [0.2, 2.0, 2.0, 2.0, 2.0]),
        ("cosine", [0.2, 2.0, 2.0, 1.0, 0.0]),
        ("linear", [0.2, 2.0, 2.0, 1.0, 0.0]),
        ("paper", [0.0, 2 * (1 - 0.1**0.5), 2.0, 0.2, 0.02]),
    ],
)
def test_schedules_with_a_warm_up(name, expected):
    schedule = schedules.build(name, 2.0, 40, 0.25)
    values = [float(schedule(step)) for step in (0, 9, 10, 25, 40)]
    assert values == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "warmup", "message"),
    [
        (
            "cosine",
            0.99,
            "warmup_epochs is 0.99 of epochs, .* to 10 of 10 steps; ",
        ),
        ("linear", 0.96, "warmup_epochs is 0.96 of epochs, .* are at most 9 steps"),
        ("constant", 1.0, "warmup_epochs is 1 of epochs"),
        ("paper", 0.6, "warmup_epochs is 0.6 .* 6 of 10 steps, .* decays at step 5; "),
        ("paper", 0.5, "the warm-up must end before"),
    ],
)
def test_a_warm_up_that_leaves_no_step_at_the_peak_is_refused(name, warmup, message):
    with pytest.raises(ValueError, match=message):
        schedules.build(name, 2.0, 10, warmup)


@pytest.mark.parametrize(("name", "warmup"), [("linear", 0.94), ("paper", 0.4)])
def test_the_longest_warm_up_reaches_the_peak(name, warmup):
    schedule = schedules.build(name, 2.0, 10, warmup)
    assert max(float(schedule(step)) for step in range(10)) == pytest.approx(2.0)
