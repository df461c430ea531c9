"""Learning-rate schedules by name, as functions of the peak and the length of a run."""

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


def _constant(peak: Peak, steps: int) -> optax.Schedule:
    del steps
    return optax.constant_schedule(peak)


def _cosine(peak: Peak, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, steps)


def _paper(peak: Peak, steps: int) -> optax.Schedule:
    # With the whole run as the unit of time, its epochs are fractions.
    return paper_schedule(
        peak, steps, warmup_epochs=PAPER_WARMUP, decay_epochs=PAPER_DECAYS
    )


SCHEDULES: dict[str, Callable[[Peak, int], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "paper": _paper,
}


def build(name: str, peak: Peak, steps: int) -> optax.Schedule:
    """Builds the schedule of a run of ``steps`` steps.

    Raises:
      ValueError: if the name is unknown.
    """
    return look_up("schedule", name, SCHEDULES)(peak, steps)
