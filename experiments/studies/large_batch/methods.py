"""The methods of the study, in groups, and what is tuned of each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.optimizers import Choice, label_of
from experiments.tuning.samplers import Search, drawn

MOMENTA = (0.5, 0.65, 0.8, 0.9, 0.95)
# Constant from the start, or rising from zero as the average of β in the presets does.
RAMPS = (0.0, 0.95)
SAMPLER_SEED = 0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An optimizer and what is tuned of it.

    Attributes:
      optimizer: a name in `experiments.optimizers.OPTIMIZERS`.
      center: geometric mean of the learning rates that are drawn, the same on every
        task; if nothing is tuned, the learning rate.
      options: fixed options.
      span: greatest of these learning rates over the least; None if nothing is tuned.
      momentum: name of the option that is drawn together with a ramp; None for
        methods whose only tuned number is the learning rate.
      schedule: learning-rate schedule, a name in `experiments.schedules.SCHEDULES`.
      takes_steps: whether the option ``num_steps`` is the length of the run.
      ema_decay: see `RunConfig`.
    """

    optimizer: str
    center: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    span: float | None = 50.0
    momentum: str | None = None
    schedule: str = "linear"
    takes_steps: bool = False
    ema_decay: float = 0.0

    def choice(self, steps: int) -> Choice:
        """The optimizer and its fixed options for a run of some length."""
        horizon = {"num_steps": steps} if self.takes_steps else {}
        return Choice(self.optimizer, {**horizon, **self.options})

    @property
    def label(self) -> str:
        """The label for tables, without the drawn numbers."""
        options = dict(self.options)
        if self.optimizer == "slope_ratio" and self.takes_steps:
            options["num_steps"] = 1  # any, so that the label is that of a horizon
        label = label_of(self.optimizer, options)
        if self.optimizer == "slope_ratio" and not self.takes_steps:
            label += ", linear decay" if self.schedule == "linear" else ""
        return label + (", averaged weights" if self.ema_decay else "")

    def searches(self, draws: int, alone: int) -> tuple[Search, ...]:
        """The first trials.

        Args:
          draws: number of draws of learning rate, momentum and ramp together.
          alone: number of draws of the learning rate, if it is the only tuned number.
        """
        if self.span is None:
            return ()
        if self.momentum is None:
            return drawn(self.center, self.span, alone, {}, SAMPLER_SEED)
        choices = {self.momentum: MOMENTA, "ramp": RAMPS}
        return drawn(self.center, self.span, draws, choices, SAMPLER_SEED)


def _baseline(
    optimizer: str, center: float, momentum: str, **options: Any
) -> Candidate:
    return Candidate(optimizer, center, options, momentum=momentum)


def untuned(optimizer: str, schedule: str = "linear", **options: Any) -> Candidate:
    """A method that takes no learning rate."""
    return Candidate(optimizer, 1.0, options, span=None, schedule=schedule)


MUON = _baseline("muon", 0.07, "momentum")
NADAMW = _baseline("nadamw", 0.015, "b1")
LARGE_BATCH = Candidate("large_batch_nlcg", 0.07)
TUNING_FREE = Candidate(
    "tuning_free_nlcg", 1.0, span=None, schedule="constant", takes_steps=True
)
LEAD = (
    MUON,
    LARGE_BATCH,
    TUNING_FREE,
    NADAMW,
    _baseline("nesterov", 0.4, "momentum"),
    _baseline("adam", 0.015, "b1"),
)
MORE = (
    _baseline("shampoo", 0.015, "momentum"),
    _baseline("soap", 0.015, "momentum"),
    _baseline("lamb", 0.05, "b1", weight_decay=0.0),
)
FREE = (
    untuned("prodigy"),
    untuned("dowg"),
    untuned("momo_adam"),
    untuned("mechanic_muon"),
    untuned("schedule_free_adamw", "constant"),
)
# One setting for all tasks, see `plan.calibrated`.
CALIBRATED = (MUON, NADAMW, LARGE_BATCH)
PUBLISHED = frozenset(c.optimizer for c in (*LEAD, *MORE) if c.momentum is not None)


def _slope(
    *,
    takes_steps: bool = True,
    schedule: str = "constant",
    ema_decay: float = 0.0,
    **options: Any,
) -> Candidate:
    return Candidate(
        "slope_ratio",
        1.0,
        options,
        span=None,
        schedule=schedule,
        takes_steps=takes_steps,
        ema_decay=ema_decay,
    )


# What each part contributes; run on the tasks that choices may be made on.
ORDERED = (
    Candidate("ordered_nlcg", 0.05, {"order": "polar_memory"}),
    Candidate("ordered_nlcg", 0.015, {"order": "kronecker_memory"}),
    Candidate("ordered_nlcg", 0.07, {"scope": "per_leaf"}),
    Candidate("ordered_nlcg", 0.07, {"ramp": 0.0}),
    *(
        Candidate("ordered_nlcg", 0.07, {"rule": "constant", "beta": beta})
        for beta in (0.5, 0.65, 0.8, 0.9)
    ),
)
STEPPED = (
    _slope(target_ratio=-0.2),
    _slope(target_ratio=-0.6),
    _slope(window_decay=0.3),
    _slope(window_decay=0.8),
    _slope(adaptation_rate=0.15),
    _slope(hold_after=0.2),
    _slope(hold_after=0.7),
    _slope(direction="polar_memory"),
    _slope(direction="muon"),
    _slope(direction="adam"),
    _slope(takes_steps=False),
)
# Without a horizon the slope is inferred; with a schedule on top, and with an average
# of the weights. Their runs differ from the last one above in more than the optimizer.
ANNEALED = (_slope(takes_steps=False, schedule="linear"),)
AVERAGED = (_slope(takes_steps=False, ema_decay=0.9),)


def of_beta(betas: list[float], mean: float, risen: float) -> tuple[Candidate, ...]:
    """`LARGE_BATCH` with a β that is not measured.

    Args:
      betas: what was measured, one per step.
      mean: their mean, used from the first step on.
      risen: the value toward which the average of β rises, reached by the same ramp.
    """
    constant = {"rule": "constant"}
    return (
        Candidate("ordered_nlcg", 0.07, {**constant, "beta": risen}),
        Candidate("ordered_nlcg", 0.07, {**constant, "beta": mean, "ramp": 0.0}),
        Candidate("ordered_nlcg", 0.07, {"rule": "replay", "betas": betas}),
    )


GROUPS = (
    "lead",
    "more",
    "free",
    "calibrated",
    "beta",
    "order",
    "step",
    "annealed",
    "averaged",
)
