"""The optimizer of arXiv 1812.02886, and the parts that only it needs."""

from nlcg_optax.paper.layerwise import scale_by_layerwise_ratio
from nlcg_optax.paper.loss_ratio import (
    LossRatioDiagnostics,
    ScaleByLossRatioState,
    feed_step_multiplier,
    scale_by_loss_ratio,
)
from nlcg_optax.paper.optimizer import paper_nlcg, paper_schedule

__all__ = [
    "LossRatioDiagnostics",
    "ScaleByLossRatioState",
    "feed_step_multiplier",
    "paper_nlcg",
    "paper_schedule",
    "scale_by_layerwise_ratio",
    "scale_by_loss_ratio",
]
