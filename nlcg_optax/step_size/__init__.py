"""Step sizes: ordinary Optax transformations that follow the direction in a chain."""

from nlcg_optax.step_size.curvature_step import (
    CurvatureStepDiagnostics as CurvatureStepDiagnostics,
)
from nlcg_optax.step_size.curvature_step import (
    ScaleByCurvatureStepState as ScaleByCurvatureStepState,
)
from nlcg_optax.step_size.curvature_step import (
    scale_by_curvature_step as scale_by_curvature_step,
)
from nlcg_optax.step_size.subspace import (
    ScaleBySubspaceStepState as ScaleBySubspaceStepState,
)
from nlcg_optax.step_size.subspace import (
    SubspaceStepDiagnostics as SubspaceStepDiagnostics,
)
from nlcg_optax.step_size.subspace import (
    scale_by_subspace_step as scale_by_subspace_step,
)
