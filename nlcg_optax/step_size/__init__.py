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
from nlcg_optax.step_size.hager_zhang import (
    HagerZhangDiagnostics as HagerZhangDiagnostics,
)
from nlcg_optax.step_size.hager_zhang import (
    ScaleByHagerZhangLinesearchState as ScaleByHagerZhangLinesearchState,
)
from nlcg_optax.step_size.hager_zhang import (
    scale_by_hager_zhang_linesearch as scale_by_hager_zhang_linesearch,
)
from nlcg_optax.step_size.loss_ratio import (
    LossRatioDiagnostics as LossRatioDiagnostics,
)
from nlcg_optax.step_size.loss_ratio import (
    ScaleByLossRatioState as ScaleByLossRatioState,
)
from nlcg_optax.step_size.loss_ratio import (
    feed_step_multiplier as feed_step_multiplier,
)
from nlcg_optax.step_size.loss_ratio import scale_by_loss_ratio as scale_by_loss_ratio
from nlcg_optax.step_size.norm_constraint import (
    ConstrainNormState as ConstrainNormState,
)
from nlcg_optax.step_size.norm_constraint import (
    NormConstraintDiagnostics as NormConstraintDiagnostics,
)
from nlcg_optax.step_size.norm_constraint import constrain_norm as constrain_norm
from nlcg_optax.step_size.scaled_cg import (
    ScaleByScaledCgStepState as ScaleByScaledCgStepState,
)
from nlcg_optax.step_size.scaled_cg import (
    ScaledCgStepDiagnostics as ScaledCgStepDiagnostics,
)
from nlcg_optax.step_size.scaled_cg import (
    scale_by_scaled_cg_step as scale_by_scaled_cg_step,
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
