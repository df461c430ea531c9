"""The Hager-Zhang line search, and the scalar state machine that it runs."""

from nlcg_optax.linesearch.hager_zhang import scale_by_hager_zhang_linesearch
from nlcg_optax.linesearch.state import (
    HagerZhangDiagnostics,
    ScaleByHagerZhangLinesearchState,
)
from nlcg_optax.linesearch.wolfe_search import SearchState, WolfeRules

__all__ = [
    "HagerZhangDiagnostics",
    "ScaleByHagerZhangLinesearchState",
    "SearchState",
    "WolfeRules",
    "scale_by_hager_zhang_linesearch",
]
