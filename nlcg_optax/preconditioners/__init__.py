"""Preconditioners: ordinary Optax transformations that map g to P g."""

from nlcg_optax.preconditioners.diagonal import (
    scale_by_equilibration as scale_by_equilibration,
)
from nlcg_optax.preconditioners.diagonal import (
    scale_by_gauss_newton_bartlett as scale_by_gauss_newton_bartlett,
)
from nlcg_optax.preconditioners.diagonal import (
    scale_by_hutchinson as scale_by_hutchinson,
)
from nlcg_optax.preconditioners.kronecker import (
    KroneckerDiagnostics as KroneckerDiagnostics,
)
from nlcg_optax.preconditioners.kronecker import (
    ScaleByKroneckerState as ScaleByKroneckerState,
)
from nlcg_optax.preconditioners.kronecker import (
    scale_by_kronecker as scale_by_kronecker,
)
from nlcg_optax.preconditioners.limited_memory import (
    LimitedMemoryDiagnostics as LimitedMemoryDiagnostics,
)
from nlcg_optax.preconditioners.limited_memory import (
    ScaleByLimitedMemoryState as ScaleByLimitedMemoryState,
)
from nlcg_optax.preconditioners.limited_memory import (
    scale_by_limited_memory as scale_by_limited_memory,
)
from nlcg_optax.preconditioners.orthogonal import (
    ScaleByOrthogonalizationState as ScaleByOrthogonalizationState,
)
from nlcg_optax.preconditioners.orthogonal import (
    scale_by_orthogonalization as scale_by_orthogonalization,
)
from nlcg_optax.preconditioners.sampled_diagonal import (
    SampledDiagonalDiagnostics as SampledDiagonalDiagnostics,
)
from nlcg_optax.preconditioners.sampled_diagonal import (
    ScaleBySampledDiagonalState as ScaleBySampledDiagonalState,
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
