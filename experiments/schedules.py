"""Learning-rate schedules by name, as functions of the peak and the length of a run."""

import math
from collections.abc import Callable

import jax
import optax

from experiments.registry import look_up
from nlcg_optax import paper_schedule

# The paper's 25 epochs of warm-up and its decays after 102 and 153 of 200 epochs, as
# fractions of a run.
PAPER_WARMUP = 25 / 200
PAPER_DECAYS = (102 / 200, 153 / 200)

Peak = float | jax.Array


def _constant(peak: Peak, steps: int, warmup: float | None) -> optax.Schedule:
    after = optax.constant_schedule(peak)
    return _after_linear_warmup(peak, _warmup_steps(steps, warmup), after)


def _cosine(peak: Peak, steps: int, warmup: float | None) -> optax.Schedule:
    warmup_steps = _warmup_steps(steps, warmup)
    after = optax.cosine_decay_schedule(peak, steps - warmup_steps)
    return _after_linear_warmup(peak, warmup_steps, after)


def _linear(peak: Peak, steps: int, warmup: float | None) -> optax.Schedule:
    warmup_steps = _warmup_steps(steps, warmup)
    after = optax.linear_schedule(peak, 0.0, steps - warmup_steps)
    return _after_linear_warmup(peak, warmup_steps, after)


def _paper(peak: Peak, steps: int, warmup: float | None) -> optax.Schedule:
    decay = round(steps * PAPER_DECAYS[0])
    if warmup is not None and math.ceil(steps * warmup) >= decay:
        raise ValueError(
            f"warmup_epochs is {warmup:.3g} of epochs, {steps * warmup:.3g} of {steps} "
            f"steps, but schedule='paper' decays at step {decay}; the warm-up must end "
            "before that"
        )
    # With the whole run as the unit of time, its epochs are fractions.
    return paper_schedule(
        peak,
        steps,
        warmup_epochs=PAPER_WARMUP if warmup is None else warmup,
        decay_epochs=PAPER_DECAYS,
    )


def _warmup_steps(steps: int, warmup: float | None) -> int:
    rounded = round(steps * (warmup or 0))
    if rounded >= steps:
        raise ValueError(
            f"warmup_epochs is {warmup:.3g} of epochs, which rounds to {rounded} of "
            f"{steps} steps; allowed are at most {steps - 1} steps"
        )
    return rounded


def _after_linear_warmup(
    peak: Peak, warmup_steps: int, schedule: optax.Schedule
) -> optax.Schedule:
    if warmup_steps == 0:
        return schedule
    # The first step is not lost on a rate of zero.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


SCHEDULES: dict[str, Callable[[Peak, int, float | None], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "paper": _paper,
}


def build(
    name: str, peak: Peak, steps: int, warmup: float | None = None
) -> optax.Schedule:
    """Builds a schedule.

    Args:
      name: a name in `SCHEDULES`.
      peak: greatest learning rate.
      steps: number of steps of the whole run.
      warmup: fraction of the run in which the rate rises to its peak; None for the
        schedule's own, which only the paper's schedule has.

    Raises:
      ValueError: if the name is unknown, or the warm-up leaves no step after it or
        ends after the paper's first decay.
    """
    return look_up("schedule", name, SCHEDULES)(peak, steps, warmup)
