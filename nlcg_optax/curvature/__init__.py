"""Curvature of a loss along directions, without ever forming a matrix."""

from nlcg_optax.curvature.along import DirectionalCurvature as DirectionalCurvature
from nlcg_optax.curvature.along import (
    gauss_newton_along as gauss_newton_along,
)
from nlcg_optax.curvature.along import hessian_along as hessian_along
from nlcg_optax.curvature.products import (
    ValueGradProduct as ValueGradProduct,
)
from nlcg_optax.curvature.products import (
    gauss_newton_vector_product as gauss_newton_vector_product,
)
from nlcg_optax.curvature.products import (
    hessian_vector_product as hessian_vector_product,
)
from nlcg_optax.curvature.products import (
    value_grad_and_hessian_vector_product as value_grad_and_hessian_vector_product,
)
