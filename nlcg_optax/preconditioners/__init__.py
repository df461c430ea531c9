"""Preconditioners: ordinary Optax transformations that map g to P g."""

from nlcg_optax.preconditioners.limited_memory import (
    LimitedMemoryDiagnostics as LimitedMemoryDiagnostics,
)
from nlcg_optax.preconditioners.limited_memory import (
    ScaleByLimitedMemoryState as ScaleByLimitedMemoryState,
)
from nlcg_optax.preconditioners.limited_memory import (
    scale_by_limited_memory as scale_by_limited_memory,
)
from nlcg_optax.preconditioners.secant import (
    DiagonalSecantDiagnostics as DiagonalSecantDiagnostics,
)
from nlcg_optax.preconditioners.secant import (
    ScaleByDiagonalSecantState as ScaleByDiagonalSecantState,
)
from nlcg_optax.preconditioners.secant import (
    scale_by_diagonal_secant as scale_by_diagonal_secant,
)
