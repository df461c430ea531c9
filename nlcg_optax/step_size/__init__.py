"""Step sizes: Optax transformations that follow a direction in a chain, or wrap it."""

from nlcg_optax.step_size.curvature_step import (
    CurvatureStepDiagnostics,
    ScaleByCurvatureStepState,
    scale_by_curvature_step,
)
from nlcg_optax.step_size.slope_control import SlopeControlState
from nlcg_optax.step_size.slope_ratio import (
    ScaleBySlopeRatioState,
    SlopeRatioDiagnostics,
    scale_by_slope_ratio,
)
from nlcg_optax.step_size.subspace import (
    ScaleBySubspaceStepState,
    SubspaceStepDiagnostics,
    scale_by_subspace_step,
)

__all__ = [
    "CurvatureStepDiagnostics",
    "ScaleByCurvatureStepState",
    "ScaleBySlopeRatioState",
    "ScaleBySubspaceStepState",
    "SlopeControlState",
    "SlopeRatioDiagnostics",
    "SubspaceStepDiagnostics",
    "scale_by_curvature_step",
    "scale_by_slope_ratio",
    "scale_by_subspace_step",
]
