"""Preconditioners: ordinary Optax transformations that map g to P g."""

from nlcg_optax.preconditioners.secant import (
    DiagonalSecantDiagnostics as DiagonalSecantDiagnostics,
)
from nlcg_optax.preconditioners.secant import (
    ScaleByDiagonalSecantState as ScaleByDiagonalSecantState,
)
from nlcg_optax.preconditioners.secant import (
    scale_by_diagonal_secant as scale_by_diagonal_secant,
)
