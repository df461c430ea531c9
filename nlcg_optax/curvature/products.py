"""Products of the Hessian and of the Gauss-Newton matrix with a vector."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree
from nlcg_optax.wrappers.extra_args import check_has_aux, without_aux
from nlcg_optax.xla.automatic_sharding import on_mesh_of


def hessian_vector_product(
    value_fn: Callable[[PyTree], Any],
    params: PyTree,
    vector: PyTree,
    *,
    has_aux: bool = False,
) -> PyTree:
    r"""Computes the Hessian-vector product by forward over reverse differentiation.

    .. math:: \nabla^2 f(\theta)\, v = \left.\frac{d}{dt} \nabla f(\theta + t v)
        \right|_{t=0}

    as ``jax.jvp(jax.grad(value_fn), (params,), (vector,))``, at about the cost of two
    gradients and in memory that does not grow with the square of the number of
    parameters (Pearlmutter, 1994). Complex parameters count as their real and imaginary
    parts, and the gradient is the direction of steepest ascent, that is, the conjugate
    of what ``jax.grad`` returns.

    Args:
      value_fn: a real scalar function of ``params``.
      params: a tree of arrays; leaves that are not floating point take no part.
      vector: a tree like ``params``; it is cast to the dtypes of ``params``.
      has_aux: whether ``value_fn`` returns a pair of the value and auxiliary data, such
        as new batch statistics; the latter are discarded.

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
    value_fn = scalar_fn(value_fn, has_aux=has_aux)
    tangents = tangents_of(params, vector, "vector")
    grad_fn = jax.grad(value_fn, allow_int=True)
    with on_mesh_of(params):
        _, product = jax.jvp(grad_fn, (params,), (tangents,))
        return _steepest_ascent(product)


class ValueGradProduct(NamedTuple):
    """What `value_grad_and_hessian_vector_product` returns.

    Attributes:
      value: ``f``, a scalar.
      grad: the gradient, ready for ``update`` (of complex parameters, the direction
        of steepest ascent).
      slope: the derivative along the vector, ``vᵀ∇f``, a scalar.
      product: ``∇²f v``, like the parameters.
    """

    value: jax.Array
    grad: PyTree
    slope: jax.Array
    product: PyTree


def value_grad_and_hessian_vector_product(
    value_fn: Callable[[PyTree], Any], params: PyTree, vector: PyTree
) -> ValueGradProduct:
    r"""Computes a loss, its gradient and a Hessian-vector product in one pass.

    ``jax.jvp(jax.value_and_grad(value_fn), (params,), (vector,))``: the product costs
    one gradient more than the gradient itself, not two.

    Args:
      value_fn: a real scalar function of ``params``.
      params: a tree of arrays; leaves that are not floating point take no part.
      vector: a tree like ``params``; it is cast to the dtypes of ``params``.

    Returns:
      The `ValueGradProduct`.

    Raises:
      TypeError: if ``value_fn`` cannot be called or does not return a real scalar.
      ValueError: if ``vector`` does not match ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> f = lambda x: x[0] ** 2 * x[1]
      >>> out = value_grad_and_hessian_vector_product(
      ...     f, jnp.array([1., 2.]), jnp.array([1., 0.]))
      >>> float(out.value), float(out.slope), out.product
      (2.0, 4.0, Array([4., 2.], dtype=float32))
    """
    value_fn = scalar_fn(value_fn)
    tangents = tangents_of(params, vector, "vector")
    with on_mesh_of(params):
        (value, grad), (slope, product) = jax.jvp(
            jax.value_and_grad(value_fn, allow_int=True), (params,), (tangents,)
        )
        return ValueGradProduct(
            value, _steepest_ascent(grad), slope, _steepest_ascent(product)
        )


def gauss_newton_vector_product(
    outputs_fn: Callable[[PyTree], PyTree],
    output_loss_fn: Callable[[PyTree], Any],
    params: PyTree,
    vector: PyTree,
    *,
    has_aux: bool = False,
) -> PyTree:
    r"""Computes the product of the generalized Gauss-Newton matrix with a vector.

    For a loss :math:`f(\theta) = \ell(z(\theta))` of the outputs z of a model with
    Jacobian J,

    .. math:: G v = J^\top\, \nabla^2 \ell(z)\, J v,

    by a forward pass (:math:`J v`), a Hessian-vector product of the output loss and a
    backward pass, at about the cost of two gradients (Schraudolph, 2002). G is
    positive semidefinite where the output loss is convex, as squares and the
    cross-entropy of logits are, whatever the model.

    Args:
      outputs_fn: the model, from ``params`` to its outputs, an array or a tree.
      output_loss_fn: from the outputs to a real scalar; for a mean over a batch, the
        mean belongs here.
      params: a tree of arrays; leaves that are not floating point take no part.
      vector: a tree like ``params``; it is cast to the dtypes of ``params``.
      has_aux: whether ``outputs_fn`` returns a pair of the outputs and auxiliary data,
        such as new batch statistics; the latter are discarded.

    Returns:
      A tree like ``params``.

    Raises:
      TypeError: if a function cannot be called or the output loss is not a real
        scalar.
      ValueError: if ``vector`` does not match ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> model = lambda x: jnp.array([x[0] * x[1], x[1]])  # J = [[1, 2], [0, 1]]
      >>> loss = lambda z: 0.5 * jnp.sum(z**2)
      >>> gauss_newton_vector_product(
      ...     model, loss, jnp.array([2., 1.]), jnp.array([1., 0.]))
      Array([1., 2.], dtype=float32)
    """
    outputs_fn = outputs_alone_fn(outputs_fn, has_aux=has_aux)
    output_loss_fn = output_scalar_fn(output_loss_fn)
    tangents = tangents_of(params, vector, "vector")
    grad_fn = jax.grad(output_loss_fn, allow_int=True)
    with on_mesh_of(params):
        outputs, changes = jax.jvp(outputs_fn, (params,), (tangents,))
        _, cotangents = jax.jvp(grad_fn, (outputs,), (changes,))
        _, pull_back = jax.vjp(outputs_fn, params)
        (product,) = pull_back(cotangents)
        return _steepest_ascent(product)


def scalar_fn(
    value_fn: Callable[[PyTree], Any], *, has_aux: bool = False
) -> Callable[[PyTree], Any]:
    """A value function without auxiliary data that raises unless it returns a scalar.

    Args:
      value_fn: the function.
      has_aux: whether it returns a pair of the value and auxiliary data.

    Returns:
      A function from parameters to the value.

    Raises:
      TypeError: if ``value_fn`` cannot be called or, in a call, returns no real scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> scalar_fn(lambda x: (jnp.sum(x), x), has_aux=True)(jnp.ones(2))
      Array(2., dtype=float32)
    """
    validation.check_callable("value_fn", value_fn)
    check_has_aux(has_aux)
    value_fn = without_aux("value_fn", value_fn) if has_aux else value_fn
    return validation.returning_scalar("value_fn", value_fn)


def outputs_alone_fn(
    outputs_fn: Callable[[PyTree], PyTree], *, has_aux: bool = False
) -> Callable[[PyTree], PyTree]:
    """An outputs function without auxiliary data, with arguments as in `scalar_fn`."""
    validation.check_callable("outputs_fn", outputs_fn)
    check_has_aux(has_aux)
    return without_aux("outputs_fn", outputs_fn) if has_aux else outputs_fn


def output_scalar_fn(
    output_loss_fn: Callable[[PyTree], Any],
) -> Callable[[PyTree], Any]:
    """The loss of outputs; it raises TypeError unless it returns a real scalar.

    If it raises for a pair of outputs, the error says what the pair may be.
    """
    validation.check_callable("output_loss_fn", output_loss_fn)
    output_loss_fn = validation.returning_scalar("output_loss_fn", output_loss_fn)

    def checked(outputs: PyTree) -> Any:
        try:
            return output_loss_fn(outputs)
        except Exception as error:
            if not isinstance(outputs, tuple) or len(outputs) != 2:
                raise
            raise TypeError(
                "output_loss_fn failed for the pair that outputs_fn returned; if it is "
                "the outputs and auxiliary data, pass has_aux=True"
            ) from error

    return checked


def tangents_of(params: PyTree, vector: PyTree, name: str) -> PyTree:
    """Returns ``vector`` as tangents of ``params``, as ``jax.jvp`` expects them.

    Args:
      params: a tree of arrays.
      vector: a tree of the same structure and shapes.
      name: name of the vector, for the message of an error.

    Returns:
      The vector in the dtypes of ``params``; ``float0`` zeros for leaves that are not
      floating point.

    Raises:
      ValueError: if the vector does not match ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> tangents_of(jnp.zeros(2, jnp.bfloat16), jnp.ones(2), "vector")
      Array([1, 1], dtype=bfloat16)
    """
    validation.check_same_structure(name, vector, params)
    return jax.tree.map(_tangent_like, params, vector)


def _tangent_like(param: jax.Array, vector: jax.Array) -> Any:
    dtype = jnp.result_type(param)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(vector).astype(dtype)
    return np.zeros(jnp.shape(param), dtype=jax.dtypes.float0)


def _steepest_ascent(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.conj(x) if jnp.iscomplexobj(x) else x, tree)
