"""Published methods without a learning rate to choose, all from ``optax.contrib``.

The learning rate of the registry multiplies the one that they find. Their papers use 1,
with the schedule recommended for each.
"""

from typing import Any

import optax

from experiments.optimizers.baselines import Rate, matrix_axes_of
from experiments.optimizers.registration import register
from experiments.optimizers.spaces import space_around


def _prodigy(learning_rate: Rate) -> optax.GradientTransformation:
    return optax.contrib.prodigy(learning_rate)


def _dowg(learning_rate: Rate) -> optax.GradientTransformation:
    return optax.contrib.dowg(learning_rate)


def _momo_adam(
    learning_rate: Rate, *, bound: float = 1e-2
) -> optax.GradientTransformation:
    """MoMo-Adam; ``bound`` is the upper bound of its step, with Optax's default."""
    return optax.contrib.momo_adam(_times(bound, learning_rate))


def _mechanic_muon(
    learning_rate: Rate, *, momentum: float = 0.95
) -> optax.GradientTransformation:
    return optax.contrib.mechanize(
        optax.contrib.muon(
            learning_rate, beta=momentum, muon_weight_dimension_numbers=matrix_axes_of
        ),
        weight_decay=0.0,
    )


def _schedule_free_adamw(
    learning_rate: Rate, *, rate: float = 0.0025, warmup_steps: int | None = None
) -> optax.GradientTransformation:
    """Schedule-free AdamW; ``rate`` is Optax's default, reached in ``warmup_steps``."""
    own: Rate = rate
    if warmup_steps is not None:
        own = optax.warmup_constant_schedule(0.0, rate, warmup_steps)
    return optax.contrib.schedule_free_adamw(_times(own, learning_rate))


def _times(factor: Rate, rate: Rate) -> Rate:
    if callable(factor) or callable(rate):
        return lambda count: _at(factor, count) * _at(rate, count)
    return factor * rate


def _at(rate: Rate, count: Any) -> Any:
    return rate(count) if callable(rate) else rate


register(
    "prodigy",
    _prodigy,
    label="Prodigy",
    color="#66a61e",
    space=space_around(1.0),
    finds_learning_rate=True,
)
register(
    "dowg",
    _dowg,
    label="DoWG",
    color="#7570b3",
    space=space_around(1.0),
    finds_learning_rate=True,
)
register(
    "momo_adam",
    _momo_adam,
    label="MoMo-Adam",
    color="#1b9e77",
    space=space_around(1.0),
    finds_learning_rate=True,
    extras=("value",),
)
register(
    "mechanic_muon",
    _mechanic_muon,
    label="Mechanic on Muon",
    color="#e7298a",
    space=space_around(1.0),
    finds_learning_rate=True,
)
register(
    "schedule_free_adamw",
    _schedule_free_adamw,
    label="Schedule-free AdamW",
    color="#666666",
    space=space_around(1.0),
    finds_learning_rate=True,
)
