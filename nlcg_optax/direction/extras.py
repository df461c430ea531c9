"""What the direction takes from the extra arguments of ``update``."""

from typing import Any

from nlcg_optax import validation
from nlcg_optax.curvature import hessian_vector_product
from nlcg_optax.dtypes import PyTree
from nlcg_optax.wrappers.extra_args import bind_extra_args


def check_across_halves(given: Any, rule: Any, used: frozenset[str]) -> None:
    """Raises unless ``across_halves`` is a boolean that the rule can live with."""
    if not isinstance(given, bool):
        raise ValueError(f"across_halves={given!r} must be True or False")
    biased = sorted(used & {"y_p_y", "d_pinv_d"})
    if given and biased:
        raise ValueError(
            f"across_halves=True does not correct {biased}, which rule={rule!r} reads; "
            "take another rule, such as 'pr+'"
        )


def halves(half_grads: Any, grads: PyTree) -> tuple[PyTree, PyTree]:
    """The gradients of the two halves; raises if they are missing or do not match."""
    validation.require(
        "scale_by_nlcg", "half_grads", half_grads, "across_halves=True multiplies them"
    )
    if not isinstance(half_grads, tuple | list) or len(half_grads) != 2:
        raise ValueError(
            f"half_grads={half_grads!r} must be a pair of trees like the gradient"
        )
    for name, half in zip(("half_grads[0]", "half_grads[1]"), half_grads, strict=True):
        validation.check_same_structure(name, half, grads)
    first, second = half_grads
    return first, second


def hessian_product(
    params: PyTree, direction: PyTree, extra_args: dict[str, Any]
) -> PyTree:
    """``H d`` on the mini-batch of this step; raises where something is missing."""
    why = "the rule reads curvature"
    validation.require("scale_by_nlcg", "params", params, why)
    value_fn = validation.require(
        "scale_by_nlcg", "value_fn", extra_args.get("value_fn"), why
    )
    return hessian_vector_product(
        bind_extra_args(value_fn, extra_args), params, direction
    )
