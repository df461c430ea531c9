"""The search direction: d = -P g + beta d_prev.

`transform` has the transformation and its four steps: the preconditioned gradient, the
inner products (`products`), the decision on beta (`beta`, with `rules`) and the new
direction.
"""

from nlcg_optax.direction.damped import damp_by_beta
from nlcg_optax.direction.rules import (
    RULES,
    ConjugacyRule,
    InnerProducts,
    bounds_of,
    constant,
    get_rule,
)
from nlcg_optax.direction.state import NlcgDiagnostics, ScaleByNlcgState
from nlcg_optax.direction.transform import scale_by_nlcg

__all__ = [
    "RULES",
    "ConjugacyRule",
    "InnerProducts",
    "NlcgDiagnostics",
    "ScaleByNlcgState",
    "bounds_of",
    "constant",
    "damp_by_beta",
    "get_rule",
    "scale_by_nlcg",
]
