"""Preconditioners: ordinary Optax transformations that map g to P g."""

from nlcg_optax.preconditioners.diagonal import (
    scale_by_equilibration,
    scale_by_gauss_newton_bartlett,
    scale_by_hutchinson,
)
from nlcg_optax.preconditioners.kronecker import (
    KroneckerDiagnostics,
    ScaleByKroneckerState,
    scale_by_kronecker,
)
from nlcg_optax.preconditioners.limited_memory import (
    LimitedMemoryDiagnostics,
    ScaleByLimitedMemoryState,
    scale_by_limited_memory,
)
from nlcg_optax.preconditioners.nested import NestedDiagnostics, NestedState
from nlcg_optax.preconditioners.orthogonal import (
    ScaleByOrthogonalizationState,
    scale_by_orthogonalization,
)
from nlcg_optax.preconditioners.sampled_diagonal import (
    SampledDiagonalDiagnostics,
    ScaleBySampledDiagonalState,
)
from nlcg_optax.preconditioners.secant import (
    DiagonalSecantDiagnostics,
    ScaleByDiagonalSecantState,
    scale_by_diagonal_secant,
)

__all__ = [
    "DiagonalSecantDiagnostics",
    "KroneckerDiagnostics",
    "LimitedMemoryDiagnostics",
    "NestedDiagnostics",
    "NestedState",
    "SampledDiagonalDiagnostics",
    "ScaleByDiagonalSecantState",
    "ScaleByKroneckerState",
    "ScaleByLimitedMemoryState",
    "ScaleByOrthogonalizationState",
    "ScaleBySampledDiagonalState",
    "scale_by_diagonal_secant",
    "scale_by_equilibration",
    "scale_by_gauss_newton_bartlett",
    "scale_by_hutchinson",
    "scale_by_kronecker",
    "scale_by_limited_memory",
    "scale_by_orthogonalization",
]
