"""Step sizes: ordinary Optax transformations that follow the direction in a chain."""

from nlcg_optax.step_size.curvature_step import (
    CurvatureStepDiagnostics,
    ScaleByCurvatureStepState,
    scale_by_curvature_step,
)
from nlcg_optax.step_size.subspace import (
    ScaleBySubspaceStepState,
    SubspaceStepDiagnostics,
    scale_by_subspace_step,
)

__all__ = [
    "CurvatureStepDiagnostics",
    "ScaleByCurvatureStepState",
    "ScaleBySubspaceStepState",
    "SubspaceStepDiagnostics",
    "scale_by_curvature_step",
    "scale_by_subspace_step",
]
