"""The baselines: what NLCG is compared with."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

import nlcg_optax
from experiments.optimizers.ramp import with_ramp
from experiments.optimizers.registration import register
from experiments.optimizers.spaces import DECOUPLED, IN_TRUST_RATIO, space_around
from experiments.weight_decay import decay_mask

PyTree = Any
Rate: TypeAlias = optax.ScalarOrSchedule


def matrix_axes(leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    """The axes of a weight as a matrix, inputs by outputs; None for a vector."""
    if leaf.ndim < 2:
        return None
    return optax.contrib.MuonDimensionNumbers(
        tuple(range(leaf.ndim - 1)), leaf.ndim - 1
    )


def matrix_axes_of(params: PyTree) -> PyTree:
    """`matrix_axes` of every leaf."""
    return jax.tree.map(matrix_axes, params)


def _sgd(learning_rate: Rate) -> optax.GradientTransformation:
    return optax.sgd(learning_rate)


def _heavy_ball(
    learning_rate: Rate, *, momentum: float = 0.9
) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum)


def _nesterov(
    learning_rate: Rate, *, momentum: float = 0.9, ramp: float | None = None
) -> optax.GradientTransformation:
    return with_ramp(
        lambda momentum: optax.sgd(learning_rate, momentum, nesterov=True),
        momentum,
        ramp,
    )


def _adam(
    learning_rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    ramp: float | None = None,
) -> optax.GradientTransformation:
    return with_ramp(
        lambda momentum: optax.adam(learning_rate, b1=momentum, b2=b2), b1, ramp
    )


def _rmsprop(
    learning_rate: Rate,
    *,
    decay: float = 0.9,
    momentum: float = 0.9,
    eps: float = 1.0,
) -> optax.GradientTransformation:
    # The paper's numbers; the mean square starts at one, as in TensorFlow 1.
    return optax.rmsprop(
        learning_rate, decay, eps=eps, momentum=momentum, initial_scale=1.0
    )


def _with_decay(
    build: Callable[..., optax.GradientTransformation],
    learning_rate: Rate,
    b1: float,
    b2: float,
    weight_decay: float,
    ramp: float | None = None,
) -> optax.GradientTransformation:
    """One of Adam's relatives in Optax, with weight decay masked by `decay_mask`."""
    return with_ramp(
        lambda momentum: build(
            learning_rate,
            b1=momentum,
            b2=b2,
            weight_decay=weight_decay,
            mask=decay_mask,
        ),
        b1,
        ramp,
    )


def _adamw(
    learning_rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 1e-2,
) -> optax.GradientTransformation:
    return _with_decay(optax.adamw, learning_rate, b1, b2, weight_decay)


def _nadamw(
    learning_rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    ramp: float | None = None,
) -> optax.GradientTransformation:
    return _with_decay(optax.nadamw, learning_rate, b1, b2, weight_decay, ramp)


def _lars(
    learning_rate: Rate,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    trust_coefficient: float = 1e-3,
) -> optax.GradientTransformation:
    return optax.lars(
        learning_rate,
        weight_decay,
        decay_mask,
        trust_coefficient,
        trust_ratio_mask=decay_mask,
        momentum=momentum,
    )


def _lamb(
    learning_rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 1e-2,
    ramp: float | None = None,
) -> optax.GradientTransformation:
    return _with_decay(optax.lamb, learning_rate, b1, b2, weight_decay, ramp)


def _muon(
    learning_rate: Rate,
    *,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    ramp: float | None = None,
) -> optax.GradientTransformation:
    return with_ramp(
        lambda momentum: optax.contrib.muon(
            learning_rate,
            beta=momentum,
            weight_decay=weight_decay,
            muon_weight_dimension_numbers=matrix_axes_of,
        ),
        momentum,
        ramp,
    )


def _shampoo(
    learning_rate: Rate,
    *,
    momentum: float = 0.9,
    decay: float = 0.95,
    refresh_period: int = 10,
    weight_decay: float = 0.0,
    ramp: float | None = None,
) -> optax.GradientTransformation:
    # With this package's factors, so that only the momentum differs from NLCG on them.
    return optax.chain(
        nlcg_optax.scale_by_kronecker(decay=decay, refresh_period=refresh_period),
        with_ramp(lambda momentum: optax.trace(momentum), momentum, ramp),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _lbfgs(
    learning_rate: Rate, *, memory_size: int = 10
) -> optax.GradientTransformation:
    # Without a line search, which on one mini-batch says little about the next.
    return optax.lbfgs(learning_rate, memory_size=memory_size, linesearch=None)


register("sgd", _sgd, label="SGD", color="#999999", space=space_around(0.5))
register(
    "heavy_ball",
    _heavy_ball,
    label="Heavy ball",
    color="#5b4a3f",
    space=space_around(0.2, "momentum"),
)
register(
    "nesterov",
    _nesterov,
    label="Nesterov",
    color="#000000",
    space=space_around(0.2, "momentum"),
)
register(
    "rmsprop",
    _rmsprop,
    label="RMSProp",
    color="#b5a400",
    space=space_around(0.2, "momentum"),
)
register("adam", _adam, label="Adam", color="#e69f00", space=space_around(0.005, "b1"))
register(
    "adamw",
    _adamw,
    label="AdamW",
    color="#d55e00",
    space=space_around(0.005, "b1", DECOUPLED),
)
register(
    "nadamw",
    _nadamw,
    label="NadamW",
    color="#a6761d",
    space=space_around(0.005, "b1", DECOUPLED),
)
register(
    "lars",
    _lars,
    label="LARS",
    color="#8c6bb1",
    space=space_around(5.0, "momentum", IN_TRUST_RATIO),
)
register(
    "lamb",
    _lamb,
    label="LAMB",
    color="#4d004b",
    space=space_around(0.02, "b1", DECOUPLED),
)
register(
    "muon",
    _muon,
    label="Muon",
    color="#a50f15",
    space=space_around(0.02, "momentum", DECOUPLED),
)
register(
    "shampoo",
    _shampoo,
    label="Shampoo",
    color="#f768a1",
    space=space_around(0.02, "momentum", DECOUPLED),
)
register("lbfgs", _lbfgs, label="L-BFGS", color="#c7a17a", space=space_around(0.2))
