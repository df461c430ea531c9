"""Nonlinear conjugate gradients for JAX, as Optax gradient transformations.

Three ideas hold the package together. A conjugacy rule is a pure function of a few
scalar inner products. A preconditioner is any Optax transformation, nested in the
direction. The step size is whatever follows in the chain. Nothing owns ``jit``, the
loss or the loop.
"""

from nlcg_optax.contrib.scaled_cg import (
    ScaleByScaledCgStepState as ScaleByScaledCgStepState,
)
from nlcg_optax.contrib.scaled_cg import (
    ScaledCgStepDiagnostics as ScaledCgStepDiagnostics,
)
from nlcg_optax.contrib.scaled_cg import (
    scale_by_scaled_cg_step as scale_by_scaled_cg_step,
)
from nlcg_optax.curvature import DirectionalCurvature as DirectionalCurvature
from nlcg_optax.curvature import ValueGradProduct as ValueGradProduct
from nlcg_optax.curvature import gauss_newton_along as gauss_newton_along
from nlcg_optax.curvature import (
    gauss_newton_vector_product as gauss_newton_vector_product,
)
from nlcg_optax.curvature import hessian_along as hessian_along
from nlcg_optax.curvature import hessian_vector_product as hessian_vector_product
from nlcg_optax.curvature import (
    value_grad_and_hessian_vector_product as value_grad_and_hessian_vector_product,
)
from nlcg_optax.direction import rules as rules
from nlcg_optax.direction.rules import RULES as RULES
from nlcg_optax.direction.rules import ConjugacyRule as ConjugacyRule
from nlcg_optax.direction.rules import constant as constant
from nlcg_optax.direction.state import NlcgDiagnostics as NlcgDiagnostics
from nlcg_optax.direction.state import ScaleByNlcgState as ScaleByNlcgState
from nlcg_optax.direction.transform import scale_by_nlcg as scale_by_nlcg
from nlcg_optax.linesearch.hager_zhang import (
    HagerZhangDiagnostics as HagerZhangDiagnostics,
)
from nlcg_optax.linesearch.hager_zhang import (
    ScaleByHagerZhangLinesearchState as ScaleByHagerZhangLinesearchState,
)
from nlcg_optax.linesearch.hager_zhang import (
    scale_by_hager_zhang_linesearch as scale_by_hager_zhang_linesearch,
)
from nlcg_optax.minimization.methods import Method as Method
from nlcg_optax.minimization.methods import (
    limited_memory_method as limited_memory_method,
)
from nlcg_optax.minimization.methods import nlcg_method as nlcg_method
from nlcg_optax.minimization.result import MinimizeResult as MinimizeResult
from nlcg_optax.minimization.result import Status as Status
from nlcg_optax.minimization.solve import minimize as minimize
from nlcg_optax.minimization.state import Progress as Progress
from nlcg_optax.monitoring import diagnostics as diagnostics
from nlcg_optax.optimizers import nlcg as nlcg
from nlcg_optax.paper.layerwise import (
    scale_by_layerwise_ratio as scale_by_layerwise_ratio,
)
from nlcg_optax.paper.loss_ratio import LossRatioDiagnostics as LossRatioDiagnostics
from nlcg_optax.paper.loss_ratio import ScaleByLossRatioState as ScaleByLossRatioState
from nlcg_optax.paper.loss_ratio import feed_step_multiplier as feed_step_multiplier
from nlcg_optax.paper.loss_ratio import scale_by_loss_ratio as scale_by_loss_ratio
from nlcg_optax.paper.optimizer import paper_nlcg as paper_nlcg
from nlcg_optax.paper.optimizer import paper_schedule as paper_schedule
from nlcg_optax.preconditioners import (
    DiagonalSecantDiagnostics as DiagonalSecantDiagnostics,
)
from nlcg_optax.preconditioners import (
    KroneckerDiagnostics as KroneckerDiagnostics,
)
from nlcg_optax.preconditioners import (
    LimitedMemoryDiagnostics as LimitedMemoryDiagnostics,
)
from nlcg_optax.preconditioners import (
    SampledDiagonalDiagnostics as SampledDiagonalDiagnostics,
)
from nlcg_optax.preconditioners import (
    ScaleByDiagonalSecantState as ScaleByDiagonalSecantState,
)
from nlcg_optax.preconditioners import (
    ScaleByKroneckerState as ScaleByKroneckerState,
)
from nlcg_optax.preconditioners import (
    ScaleByLimitedMemoryState as ScaleByLimitedMemoryState,
)
from nlcg_optax.preconditioners import (
    ScaleByOrthogonalizationState as ScaleByOrthogonalizationState,
)
from nlcg_optax.preconditioners import (
    ScaleBySampledDiagonalState as ScaleBySampledDiagonalState,
)
from nlcg_optax.preconditioners import (
    scale_by_diagonal_secant as scale_by_diagonal_secant,
)
from nlcg_optax.preconditioners import (
    scale_by_equilibration as scale_by_equilibration,
)
from nlcg_optax.preconditioners import (
    scale_by_gauss_newton_bartlett as scale_by_gauss_newton_bartlett,
)
from nlcg_optax.preconditioners import (
    scale_by_hutchinson as scale_by_hutchinson,
)
from nlcg_optax.preconditioners import (
    scale_by_kronecker as scale_by_kronecker,
)
from nlcg_optax.preconditioners import (
    scale_by_limited_memory as scale_by_limited_memory,
)
from nlcg_optax.preconditioners import (
    scale_by_orthogonalization as scale_by_orthogonalization,
)
from nlcg_optax.presets import large_batch_nlcg as large_batch_nlcg
from nlcg_optax.presets import tuning_free_nlcg as tuning_free_nlcg
from nlcg_optax.step_size import (
    CurvatureStepDiagnostics as CurvatureStepDiagnostics,
)
from nlcg_optax.step_size import (
    ScaleByCurvatureStepState as ScaleByCurvatureStepState,
)
from nlcg_optax.step_size import (
    ScaleBySubspaceStepState as ScaleBySubspaceStepState,
)
from nlcg_optax.step_size import SubspaceStepDiagnostics as SubspaceStepDiagnostics
from nlcg_optax.step_size import scale_by_curvature_step as scale_by_curvature_step
from nlcg_optax.step_size import scale_by_subspace_step as scale_by_subspace_step
from nlcg_optax.trees.inner_products import InnerProducts as InnerProducts
from nlcg_optax.wrappers.extra_args import for_linesearch as for_linesearch
from nlcg_optax.wrappers.extra_args import only_extra_args as only_extra_args
from nlcg_optax.wrappers.masked import fill_masked as fill_masked
from nlcg_optax.wrappers.split_parameters import split_parameters as split_parameters
from nlcg_optax.wrappers.virtual_batch import VirtualBatchState as VirtualBatchState
from nlcg_optax.wrappers.virtual_batch import virtual_batch as virtual_batch

__version__ = "0.1.0"
