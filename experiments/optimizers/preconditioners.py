"""The preconditioners of NLCG by name, each with its needs and its cost."""

from collections.abc import Callable
from typing import NamedTuple

import optax

import nlcg_optax

HVP_COST = 2.0  # gradient-equivalents of a Hessian-vector product


class Preconditioner(NamedTuple):
    """A preconditioner with its needs and its cost.

    Attributes:
      build: from options to the transformation; None for P = I.
      label: for tables and legends.
      extras: the extra arguments that its ``update`` takes.
      extra_cost: gradient-equivalents of a refresh, which is made every
        ``refresh_period`` steps.
      learning_rate: center of the search for NLCG with it.
      decoupled: whether its weight decay is decoupled in the search.
    """

    build: Callable[..., optax.GradientTransformation | None]
    label: str
    extras: tuple[str, ...] = ()
    extra_cost: float = 0.0
    learning_rate: float = 0.1
    decoupled: bool = True


def _rms(*, decay: float = 0.999) -> optax.GradientTransformation:
    # The second moment of Adam, so that Adam is the peer with a fixed momentum.
    return optax.scale_by_rms(decay, eps_in_sqrt=False, bias_correction=True)


def _secant(*, refresh_period: int = 5) -> optax.GradientTransformation:
    return nlcg_optax.scale_by_diagonal_secant(
        secant="hvp", refresh_period=refresh_period
    )


def _orthogonal(
    *, decay: float = 0.999, restore_norm: bool = False
) -> optax.GradientTransformation:
    # Muon's step, so that Muon is the peer with a fixed momentum.
    return nlcg_optax.scale_by_orthogonalization(
        restore_norm=bool(restore_norm), vectors=_rms(decay=decay)
    )


def _kronecker(
    *, decay: float = 0.95, refresh_period: int = 10, relative_damping: float = 1e-6
) -> optax.GradientTransformation:
    return nlcg_optax.scale_by_kronecker(
        decay=decay, refresh_period=refresh_period, relative_damping=relative_damping
    )


def _hutchinson(
    *, refresh_period: int = 10, power: float = 1.0
) -> optax.GradientTransformation:
    return nlcg_optax.scale_by_hutchinson(refresh_period=refresh_period, power=power)


def _equilibration(
    *, refresh_period: int = 10, power: float = 1.0
) -> optax.GradientTransformation:
    return nlcg_optax.scale_by_equilibration(refresh_period=refresh_period, power=power)


def _bartlett(
    *, refresh_period: int = 10, power: float = 1.0
) -> optax.GradientTransformation:
    return nlcg_optax.scale_by_gauss_newton_bartlett(
        refresh_period=refresh_period, power=power
    )


PRECONDITIONERS: dict[str, Preconditioner] = {
    "none": Preconditioner(lambda: None, "", learning_rate=0.2, decoupled=False),
    "rms": Preconditioner(_rms, "RMS", learning_rate=0.005),
    "secant": Preconditioner(
        _secant, "secant", ("value_fn",), HVP_COST, 0.2, decoupled=False
    ),
    "hutchinson": Preconditioner(_hutchinson, "Hutchinson", ("value_fn",), HVP_COST),
    "equilibration": Preconditioner(
        _equilibration, "equilibration", ("value_fn",), HVP_COST
    ),
    "bartlett": Preconditioner(_bartlett, "Bartlett", ("outputs_fn",), 1.0),
    "orthogonal": Preconditioner(_orthogonal, "orthogonal", learning_rate=0.02),
    "kronecker": Preconditioner(_kronecker, "Kronecker", learning_rate=0.02),
}
