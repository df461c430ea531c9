"""Published methods without a learning rate to choose, all from ``optax.contrib``.

The learning rate of the registry multiplies the one that they find. Their papers use 1,
with the schedule recommended for each.
"""

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
    """Schedule-free AdamW, with Optax's default rate; ``learning_rate`` must be 1."""
    del learning_rate  # it has no schedule
    return optax.contrib.schedule_free_adamw(rate, warmup_steps)


def _times(factor: float, rate: Rate) -> Rate:
    if callable(rate):
        return lambda count: factor * rate(count)
    return factor * rate


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
