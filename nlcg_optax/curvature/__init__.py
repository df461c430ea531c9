"""Curvature of a loss along directions, without ever forming a matrix."""

from nlcg_optax.curvature.along import (
    DirectionalCurvature,
    gauss_newton_along,
    hessian_along,
)
from nlcg_optax.curvature.products import (
    ValueGradProduct,
    gauss_newton_vector_product,
    hessian_vector_product,
    value_grad_and_hessian_vector_product,
)

__all__ = [
    "DirectionalCurvature",
    "ValueGradProduct",
    "gauss_newton_along",
    "gauss_newton_vector_product",
    "hessian_along",
    "hessian_vector_product",
    "value_grad_and_hessian_vector_product",
]
