"""The preconditioners of NLCG by name, each with what it asks for and what it costs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import nlcg_optax

HVP_COST = 2.0  # gradient-equivalents of a Hessian-vector product

PyTree = Any


class Preconditioner(NamedTuple):
    """A preconditioner with its needs and its price.

    Attributes:
      build: from options, which are numbers, to the transformation; None for P = I.
      extras: the extra arguments that its ``update`` takes.
      extra_cost: from the options to its mean cost a step, in gradients.
    """

    build: Callable[..., optax.GradientTransformation | None]
    extras: tuple[str, ...] = ()
    extra_cost: Callable[..., float] = lambda **_: 0.0


def matrix_axes(leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    """How a weight is a matrix for Muon: inputs by outputs; None for vectors."""
    if leaf.ndim < 2:
        return None
    return optax.contrib.MuonDimensionNumbers(
        tuple(range(leaf.ndim - 1)), leaf.ndim - 1
    )


def matrix_axes_of(params: PyTree) -> PyTree:
    """`matrix_axes` of every leaf."""
    return jax.tree.map(matrix_axes, params)


def _rms(*, decay: float = 0.999) -> optax.GradientTransformation:
    # The second moment of Adam, so that Adam is the fixed-momentum peer.
    return optax.scale_by_rms(decay, eps_in_sqrt=False, bias_correction=True)


def _secant(*, refresh_period: int = 5) -> optax.GradientTransformation:
    return nlcg_optax.scale_by_diagonal_secant(
        secant="hvp", refresh_period=refresh_period
    )


def _orthogonal(
    *, decay: float = 0.999, restore_norm: bool = False
) -> optax.GradientTransformation:
    # Muon's step, so that Muon is the fixed-momentum peer.
    return nlcg_optax.scale_by_orthogonalization(
        restore_norm=bool(restore_norm), vectors=_rms(decay=decay)
    )


def _kronecker(
    *, decay: float = 0.95, refresh_period: int = 10, damping: float = 1e-6
) -> optax.GradientTransformation:
    return nlcg_optax.scale_by_kronecker(
        decay=decay, refresh_period=refresh_period, relative_damping=damping
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


def _every(cost: float, period: int) -> Callable[..., float]:
    """The mean cost a step of something every so many steps."""
    return lambda *, refresh_period=period, **_: cost / refresh_period


PRECONDITIONERS: dict[str, Preconditioner] = {
    "": Preconditioner(lambda: None),
    "rms": Preconditioner(_rms),
    "secant": Preconditioner(_secant, ("value_fn",), _every(HVP_COST, 5)),
    "hutchinson": Preconditioner(_hutchinson, ("value_fn",), _every(HVP_COST, 10)),
    "equilibration": Preconditioner(
        _equilibration, ("value_fn",), _every(HVP_COST, 10)
    ),
    "bartlett": Preconditioner(_bartlett, ("outputs_fn",), _every(1.0, 10)),
    "orthogonal": Preconditioner(_orthogonal),
    "kronecker": Preconditioner(_kronecker),
}
