"""Methods that were not shown to help, with the numbers where they were compared."""

from nlcg_optax.contrib.across_halves import scale_by_nlcg_across_halves
from nlcg_optax.contrib.daniel import scale_by_daniel
from nlcg_optax.contrib.recent_directions import RecentDirections
from nlcg_optax.contrib.restart_memory import (
    ScaleByNlcgWithRestartMemoryState,
    scale_by_nlcg_with_restart_memory,
)
from nlcg_optax.contrib.scaled_cg import (
    ScaleByScaledCgStepState,
    ScaledCgStepDiagnostics,
    scale_by_scaled_cg_step,
)

__all__ = [
    "RecentDirections",
    "ScaleByNlcgWithRestartMemoryState",
    "ScaleByScaledCgStepState",
    "ScaledCgStepDiagnostics",
    "scale_by_daniel",
    "scale_by_nlcg_across_halves",
    "scale_by_nlcg_with_restart_memory",
    "scale_by_scaled_cg_step",
]
