"""Nonlinear conjugate gradients for JAX, as Optax gradient transformations.

Three ideas hold the package together. A conjugacy rule is a pure function of a few
scalar inner products. A preconditioner is any Optax transformation, nested in the
direction. The step size follows in the chain, or wraps the direction if it reads
slopes. The package leaves ``jit``, the loss and the loop to the caller.

Optimizers:
  `nlcg`, `large_batch_nlcg`, `tuning_free_nlcg`, `paper_nlcg` and its learning rate
  `paper_schedule`.
Direction:
  `scale_by_nlcg`; `damp_by_beta`; `InnerProducts`, the input of a custom rule.
Preconditioners:
  `scale_by_kronecker`, `scale_by_orthogonalization`, `scale_by_hutchinson`,
  `scale_by_equilibration`, `scale_by_gauss_newton_bartlett`,
  `scale_by_diagonal_secant`, `scale_by_limited_memory`.
Step sizes:
  `scale_by_slope_ratio`, `scale_by_curvature_step`, `scale_by_subspace_step`,
  `scale_by_hager_zhang_linesearch`.
Deterministic problems:
  `minimize`, its `MinimizeResult` and `Status`; a `Method`, from `nlcg_method` or
  `limited_memory_method`.
Curvature:
  `hessian_vector_product`, `gauss_newton_vector_product`, `hessian_along`,
  `gauss_newton_along`.
Wrappers:
  `virtual_batch`, `split_parameters`, `fill_masked`, `only_extra_args`,
  `for_linesearch`.
Diagnostics:
  `diagnostics`.

States, their diagnostics and further parts are in the submodules: ``direction``,
``preconditioners``, ``step_size``, ``linesearch``, ``minimization``, ``curvature``,
``wrappers``, ``paper`` and ``contrib``.
"""

from nlcg_optax import contrib as contrib  # importable, but not in __all__
from nlcg_optax.curvature import (
    gauss_newton_along,
    gauss_newton_vector_product,
    hessian_along,
    hessian_vector_product,
)
from nlcg_optax.direction import InnerProducts, damp_by_beta, scale_by_nlcg
from nlcg_optax.linesearch import scale_by_hager_zhang_linesearch
from nlcg_optax.minimization.methods import (
    Method,
    limited_memory_method,
    nlcg_method,
)
from nlcg_optax.minimization.result import MinimizeResult, Status
from nlcg_optax.minimization.solve import minimize
from nlcg_optax.monitoring import diagnostics
from nlcg_optax.optimizers import large_batch_nlcg, nlcg, tuning_free_nlcg
from nlcg_optax.paper import paper_nlcg, paper_schedule
from nlcg_optax.preconditioners import (
    scale_by_diagonal_secant,
    scale_by_equilibration,
    scale_by_gauss_newton_bartlett,
    scale_by_hutchinson,
    scale_by_kronecker,
    scale_by_limited_memory,
    scale_by_orthogonalization,
)
from nlcg_optax.step_size import (
    scale_by_curvature_step,
    scale_by_slope_ratio,
    scale_by_subspace_step,
)
from nlcg_optax.wrappers import (
    fill_masked,
    for_linesearch,
    only_extra_args,
    split_parameters,
    virtual_batch,
)

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022, in the groups of the docstring
    # optimizers
    "nlcg",
    "large_batch_nlcg",
    "tuning_free_nlcg",
    "paper_nlcg",
    "paper_schedule",
    # direction
    "scale_by_nlcg",
    "damp_by_beta",
    "InnerProducts",
    # preconditioners
    "scale_by_kronecker",
    "scale_by_orthogonalization",
    "scale_by_hutchinson",
    "scale_by_equilibration",
    "scale_by_gauss_newton_bartlett",
    "scale_by_diagonal_secant",
    "scale_by_limited_memory",
    # step sizes
    "scale_by_slope_ratio",
    "scale_by_curvature_step",
    "scale_by_subspace_step",
    "scale_by_hager_zhang_linesearch",
    # deterministic problems
    "minimize",
    "MinimizeResult",
    "Status",
    "Method",
    "nlcg_method",
    "limited_memory_method",
    # curvature
    "hessian_vector_product",
    "gauss_newton_vector_product",
    "hessian_along",
    "gauss_newton_along",
    # wrappers
    "virtual_batch",
    "split_parameters",
    "fill_masked",
    "only_extra_args",
    "for_linesearch",
    # diagnostics
    "diagnostics",
]
