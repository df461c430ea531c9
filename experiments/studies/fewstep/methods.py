"""The methods of the study, and what is tuned of each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.optimizers import Choice

MOMENTA = (0.8, 0.9, 0.95)
# In place of the package's default, which smooths β over steps and bounds it by 0.95.
UNSMOOTHED: dict[str, Any] = {"beta_max": 1.0, "beta_smoothing": 0.0}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An optimizer and what is tuned of it.

    Attributes:
      optimizer: a name in `experiments.optimizers.OPTIMIZERS`.
      center: geometric mean of the grid of learning rates.
      options: fixed options.
      momentum: name of the option that is tuned as well, over `MOMENTA`; None for
        methods whose only tuned number is the learning rate.
      tuned: whether anything is tuned; otherwise the learning rate is the center.
      schedule: learning-rate schedule, a name in `experiments.schedules.SCHEDULES`.
    """

    optimizer: str
    center: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    momentum: str | None = None
    tuned: bool = True
    schedule: str = "linear"

    @property
    def choice(self) -> Choice:
        """The optimizer and its fixed options."""
        return Choice(self.optimizer, dict(self.options))

    def variants(self) -> list[dict[str, float]]:
        """Values of the tuned momentum; a search of learning rates for each."""
        if self.momentum is None:
            return [{}]
        return [{self.momentum: value} for value in MOMENTA]


def nlcg(
    preconditioner: str,
    center: float,
    *,
    rule: str = "pr+",
    tuned: bool = True,
    schedule: str = "linear",
    **options: Any,
) -> Candidate:
    """NLCG with a rule and a preconditioner."""
    kinds = {"rule": rule, "preconditioner": preconditioner}
    defaults = {"rule": "pr+", "preconditioner": "none"}
    chosen = {name: kind for name, kind in kinds.items() if kind != defaults[name]}
    return Candidate(
        "nlcg", center, {**chosen, **options}, tuned=tuned, schedule=schedule
    )


def _in_a_plane(preconditioner: str) -> Candidate:
    """The best step in the plane of the direction and the last step."""
    return nlcg(
        preconditioner,
        1.0,
        rule="constant",
        beta=0.0,
        step="subspace",
        tuned=False,
        schedule="constant",
    )


# The strongest first, so that a study that is stopped has most of its answer.
BASELINES = (
    Candidate("shampoo", 0.01, momentum="momentum"),
    Candidate("muon", 0.15, momentum="momentum"),
    Candidate("nesterov", 0.4, momentum="momentum"),
    Candidate("adam", 0.03, momentum="b1"),
    Candidate("lamb", 0.06, {"weight_decay": 0.0}, momentum="b1"),
    Candidate("lbfgs", 1.2),
    Candidate("sgd", 2.0),
    Candidate("lars", 5.0, {"weight_decay": 0.0}, momentum="momentum"),
)
NLCG = tuple(
    nlcg(preconditioner, center, rule=rule, **UNSMOOTHED)
    for preconditioner, center in (
        ("kronecker", 0.01),
        ("orthogonal", 0.07),
        ("rms", 0.01),
        ("none", 1.2),
    )
    for rule in ("pr+", "fr", "hs")
)
LARGE_BATCH = Candidate("large_batch_nlcg", 0.01)
# Its β is compared with the mean as a constant, and with its replay.
ABLATED = nlcg("orthogonal", 0.05)
SMOOTH = (LARGE_BATCH, ABLATED, nlcg("rms", 0.01))
TUNING_FREE = (
    Candidate("tuning_free_nlcg", 1.0, {"preconditioner": "orthogonal"}, tuned=False),
    Candidate("tuning_free_nlcg", 1.0, tuned=False),
    _in_a_plane("orthogonal"),
    _in_a_plane("kronecker"),
)
# Ways to keep noise out of β, with one preconditioner for all.
NOISE = (
    nlcg("orthogonal", 0.07, **UNSMOOTHED),
    nlcg("orthogonal", 0.05),
    nlcg("orthogonal", 0.07, beta_max=0.9, beta_smoothing=0.0),
    nlcg("orthogonal", 0.05, rule="constant", beta=0.9),
    nlcg("orthogonal", 0.05, rule="fr"),
    nlcg("orthogonal", 0.07, beta_max=1.0, across_halves=True),
    nlcg("orthogonal", 0.07, beta_max=1.0, rule="daniel"),
    nlcg("orthogonal", 0.07, **UNSMOOTHED, across_halves=True),
    nlcg("orthogonal", 0.07, **UNSMOOTHED, rule="daniel"),
    nlcg("orthogonal", 0.07, beta_max=1.0),
    *(nlcg("orthogonal", 0.07, rule=rule, **UNSMOOTHED) for rule in ("fr", "hs")),
)
# The default of `nlcg` also depends on what it does without a matrix preconditioner.
NOISE_DEFAULTS = tuple(
    nlcg(preconditioner, center, **options)
    for preconditioner, center in (("none", 1.2), ("rms", 0.01))
    for options in (UNSMOOTHED, {"beta_max": 1.0}, {**UNSMOOTHED, "beta_max": 0.9}, {})
)
# Curvature sampled at every step: on CPUs convolutions are slow inside conditionals.
DIAGONALS = tuple(
    nlcg(preconditioner, 0.1, refresh_period=1)
    for preconditioner in ("hutchinson", "equilibration", "bartlett", "secant")
)
# For tasks that nothing was developed on: the strongest peers, and the methods without
# a number to tune.
TRANSFER = (
    Candidate("shampoo", 0.01, momentum="momentum"),
    Candidate("muon", 0.05, momentum="momentum"),
    Candidate("nesterov", 0.2, momentum="momentum"),
    LARGE_BATCH,
    ABLATED,
    *TUNING_FREE,
)
# The methods that are drawn: baselines with any momentum, and these.
DRAWN_BASELINES = ("sgd", "nesterov", "adam", "muon", "shampoo")
DRAWN = (
    nlcg("none", 1.2, **UNSMOOTHED),
    nlcg("orthogonal", 0.07, **UNSMOOTHED),
    ABLATED,
    LARGE_BATCH,
    TUNING_FREE[1],
)


def ablations(betas: list[float], mean: float) -> tuple[Candidate, ...]:
    """`ABLATED` with a constant β, and with a recorded one that is replayed."""
    return (
        nlcg("orthogonal", ABLATED.center, rule="constant", beta=mean),
        nlcg("orthogonal", ABLATED.center, rule="replay", betas=betas),
    )


# For the small study.
SMALL = (Candidate("muon", 0.05, momentum="momentum"), nlcg("orthogonal", 0.02))
SMALL_NOISE = (nlcg("orthogonal", 0.02, **UNSMOOTHED, across_halves=True),)
