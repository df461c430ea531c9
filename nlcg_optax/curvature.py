"""Curvature of a loss along a direction, without ever forming a matrix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree


def hessian_vector_product(
    value_fn: Callable[[PyTree], Any], params: PyTree, vector: PyTree
) -> PyTree:
    r"""Computes the Hessian-vector product by forward over reverse differentiation.

    .. math:: \nabla^2 f(\theta)\, v = \left.\frac{d}{dt} \nabla f(\theta + t v)
        \right|_{t=0}

    as ``jax.jvp(jax.grad(value_fn), (params,), (vector,))``, at about the cost of two
    gradients and in memory independent of the number of parameters squared. Complex
    parameters count as their real and imaginary parts, and the gradient is the
    direction of steepest ascent, that is, the conjugate of what ``jax.grad`` returns.

    Args:
      value_fn: a real scalar function of ``params``.
      params: a tree of arrays; leaves that are not floating point take no part.
      vector: a tree like ``params``; it is cast to the dtypes of ``params``.

    Returns:
      A tree like ``params``.

    Raises:
      TypeError: if ``value_fn`` cannot be called or does not return a real scalar.
      ValueError: if ``vector`` does not match ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> f = lambda x: x[0] ** 2 * x[1]
      >>> hessian_vector_product(f, jnp.array([1., 2.]), jnp.array([1., 0.]))
      Array([4., 2.], dtype=float32)
    """
    validation.check_callable("value_fn", value_fn)
    validation.check_same_structure("vector", vector, params)
    tangents = jax.tree.map(_tangent_like, params, vector)
    grad_fn = jax.grad(value_fn, allow_int=True)
    _, product = jax.jvp(grad_fn, (params,), (tangents,))
    return jax.tree.map(lambda p: jnp.conj(p) if jnp.iscomplexobj(p) else p, product)


def _tangent_like(param: jax.Array, vector: jax.Array) -> Any:
    if jnp.issubdtype(param.dtype, jnp.inexact):
        return vector.astype(param.dtype)
    return np.zeros(jnp.shape(param), dtype=jax.dtypes.float0)


def fill_masked(
    value_fn: Callable[..., Any], full_params: PyTree
) -> Callable[..., Any]:
    """Makes a loss of all parameters callable with a partly masked tree.

    Inside ``optax.masked`` and ``optax.partition`` a transformation sees
    ``optax.MaskedNode`` where a parameter belongs to somebody else, but ``value_fn``
    wants the whole tree. Pass ``value_fn=fill_masked(value_fn, params)`` to
    ``update`` and both curvature products and line searches work there.

    Args:
      value_fn: a loss ``value_fn(params, ...)`` of the full tree.
      full_params: the tree that masked leaves are taken from.

    Returns:
      A function of a tree like ``full_params`` in which ``optax.MaskedNode`` stands
      for leaves or subtrees to be filled in.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> loss = lambda p: p["a"] * p["b"]
      >>> partial_loss = fill_masked(loss, {"a": jnp.float32(2.), "b": jnp.float32(3.)})
      >>> partial_loss({"a": jnp.float32(5.), "b": optax.MaskedNode()})
      Array(15., dtype=float32)
    """
    validation.check_callable("value_fn", value_fn)

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def filled_fn(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        filled = jax.tree.map(
            lambda own, full: full if is_masked(own) else own,
            params,
            full_params,
            is_leaf=is_masked,
        )
        return value_fn(filled, *args, **kwargs)

    return filled_fn
