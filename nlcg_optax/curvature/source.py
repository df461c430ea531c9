"""Which curvature a transformation uses, from the extra arguments of ``update``."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from nlcg_optax import validation
from nlcg_optax.curvature.along import (
    DirectionalCurvature,
    gauss_newton_along,
    hessian_along,
)
from nlcg_optax.curvature.products import (
    gauss_newton_vector_product,
    hessian_vector_product,
    output_scalar_fn,
    scalar_fn,
)
from nlcg_optax.dtypes import PyTree, accumulator_dtype
from nlcg_optax.trees.inner_products import vdots
from nlcg_optax.wrappers.extra_args import bind_extra_args

CurvatureKind: TypeAlias = Literal["hessian", "gauss_newton"]

CURVATURES = ("hessian", "gauss_newton")


def curvature_along_fn(
    transformation: str,
    curvature: CurvatureKind,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> Callable[[Sequence[PyTree]], DirectionalCurvature]:
    """Chooses how slopes and curvatures along directions are computed.

    With ``hvp_fn`` in the extra arguments, they are inner products with what it
    returns and with ``grad``, the gradient as ``jax.grad`` gives it; otherwise they
    come from `hessian_along` or `gauss_newton_along`.

    Args:
      transformation: name of the caller, for the messages of errors.
      curvature: ``"hessian"``, of ``value_fn``, or ``"gauss_newton"``, of
        ``outputs_fn`` and ``output_loss_fn``.
      params: where to differentiate.
      extra_args: the extra arguments of an ``update`` call; those that one of the
        functions accepts by name are bound to it.

    Returns:
      A function from a sequence of directions to the `DirectionalCurvature`.

    Raises:
      ValueError: if something that is needed was not passed.
      TypeError: if a function cannot be called.
    """
    require, function = _readers(transformation, curvature, extra_args)
    require("params", params, "the curvature is taken there")
    if extra_args.get("hvp_fn") is not None:
        product_fn = function("hvp_fn", num_positional=2)
        grad = require("grad", extra_args.get("grad"), "hvp_fn gives no slopes")
        value = extra_args.get("value", jnp.nan)
        return lambda directions: _along_by_products(
            product_fn, value, grad, params, directions
        )
    if curvature == "hessian":
        value_fn = function("value_fn")
        return lambda directions: hessian_along(value_fn, params, directions)
    outputs_fn, output_loss_fn = function("outputs_fn"), function("output_loss_fn")
    return lambda directions: gauss_newton_along(
        outputs_fn, output_loss_fn, params, directions
    )


def value_at_fn(
    transformation: str, curvature: CurvatureKind, extra_args: dict[str, Any]
) -> Callable[[PyTree], jax.Array]:
    """Returns the loss that belongs to a curvature, as a function of parameters.

    It is ``value_fn`` or, for ``"gauss_newton"`` without one, the composition of
    ``outputs_fn`` and ``output_loss_fn``. Arguments and errors are those of
    `curvature_along_fn`; with ``hvp_fn``, ``value`` must be given, too.
    """
    require, function = _readers(transformation, curvature, extra_args)
    if extra_args.get("hvp_fn") is not None:
        require("value", extra_args.get("value"), "hvp_fn gives no loss")
    if curvature == "hessian" or extra_args.get("value_fn") is not None:
        value_fn = function("value_fn")
    else:
        outputs_fn = function("outputs_fn")
        output_loss_fn = output_scalar_fn(function("output_loss_fn"))

        def value_fn(params: PyTree) -> Any:
            return output_loss_fn(outputs_fn(params))

    value_fn = scalar_fn(value_fn)

    def value_at(params: PyTree) -> jax.Array:
        return jnp.asarray(value_fn(params)).astype(accumulator_dtype(params))

    return value_at


def product_fn(
    transformation: str,
    curvature: CurvatureKind,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> Callable[[PyTree], PyTree]:
    """Chooses how products with the curvature matrix are computed.

    Arguments and errors are those of `curvature_along_fn`.

    Returns:
      A function from a tree like ``params`` to another.
    """
    require, function = _readers(transformation, curvature, extra_args)
    require("params", params, "the curvature is taken there")
    if extra_args.get("hvp_fn") is not None:
        hvp_fn = function("hvp_fn", num_positional=2)

        def checked_product(vector: PyTree) -> PyTree:
            product = hvp_fn(params, vector)
            validation.check_same_structure("the result of hvp_fn", product, params)
            return product

        return checked_product
    if curvature == "hessian":
        value_fn = function("value_fn")
        return lambda vector: hessian_vector_product(value_fn, params, vector)
    outputs_fn, output_loss_fn = function("outputs_fn"), function("output_loss_fn")
    return lambda vector: gauss_newton_vector_product(
        outputs_fn, output_loss_fn, params, vector
    )


def _readers(
    transformation: str, curvature: str, extra_args: dict[str, Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def require(name: str, value: Any, why: str) -> Any:
        return validation.require(transformation, name, value, why, extra_args)

    def function(name: str, num_positional: int = 1) -> Callable[..., Any]:
        value = require(name, extra_args.get(name), f"curvature={curvature!r} uses it")
        return bind_extra_args(
            value, extra_args, name=name, num_positional=num_positional
        )

    return require, function


def _along_by_products(
    product_fn: Callable[[PyTree, PyTree], PyTree],
    value: Any,
    grad: PyTree,
    params: PyTree,
    directions: Sequence[PyTree],
) -> DirectionalCurvature:
    acc = accumulator_dtype(params)
    products = [product_fn(params, d) for d in directions]
    for product in products:
        validation.check_same_structure("the result of hvp_fn", product, params)
    count = len(directions)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    # jax.grad of a complex parameter is the conjugate of the steepest ascent.
    ascent = jax.tree.map(jnp.conj, grad)
    dots = vdots(
        [(ascent, d) for d in directions]
        + [(directions[i], products[j]) for i, j in pairs],
        dtype=acc,
    )
    second = dict(zip(pairs, dots[count:], strict=True))
    rows = [
        jnp.stack([second[min(i, j), max(i, j)] for j in range(count)])
        for i in range(count)
    ]
    return DirectionalCurvature(
        jnp.asarray(value).astype(acc), jnp.stack(dots[:count]), jnp.stack(rows)
    )
