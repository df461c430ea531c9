"""Slopes and second derivatives along directions, without a backward pass."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.curvature.products import (
    output_scalar_fn,
    outputs_alone_fn,
    scalar_fn,
    tangents_of,
)
from nlcg_optax.dtypes import PyTree, accumulator_dtype
from nlcg_optax.xla.automatic_sharding import on_mesh_of


class DirectionalCurvature(NamedTuple):
    """A quadratic model of a loss in the span of k directions.

    Attributes:
      value: the loss, a scalar.
      slopes: ``d_iᵀ∇f``, of shape ``(k,)``.
      matrix: ``d_iᵀB d_j``, of shape ``(k, k)``, symmetric.
    """

    value: jax.Array
    slopes: jax.Array
    matrix: jax.Array


def hessian_along(
    value_fn: Callable[[PyTree], Any],
    params: PyTree,
    directions: Sequence[PyTree],
    *,
    has_aux: bool = False,
) -> DirectionalCurvature:
    r"""Computes slopes and Hessian of a loss within the span of some directions.

    .. math:: f(\theta), \qquad d_i^\top \nabla f(\theta), \qquad
        d_i^\top \nabla^2 f(\theta)\, d_j

    for all pairs of directions, by forward differentiation alone
    (``jax.jvp`` of ``jax.jvp``): no activations are stored. Under ``jit`` the pairs
    share common work.

    Args:
      value_fn: a real scalar function of ``params``; it must not contain a function
        with a ``jax.custom_vjp``, which has no forward derivative.
      params: a tree of arrays; leaves that are not floating point take no part.
      directions: trees like ``params``, cast to its dtypes; usually one or two, because
        the cost grows with the number of pairs.
      has_aux: whether ``value_fn`` returns a pair of the value and auxiliary data; the
        latter are discarded.

    Returns:
      The `DirectionalCurvature`, in float32 or wider.

    Raises:
      TypeError: if ``value_fn`` cannot be called or does not return a real scalar.
      ValueError: if there is no direction, or one does not match ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> f = lambda x: x[0] ** 2 * x[1]
      >>> out = hessian_along(f, jnp.array([1., 2.]), [jnp.array([1., -1.])])
      >>> out.slopes, out.matrix  # the Hessian is [[4, 2], [2, 0]]
      (Array([3.], dtype=float32), Array([[0.]], dtype=float32))
    """
    value_fn = scalar_fn(value_fn, has_aux=has_aux)
    with on_mesh_of(params):
        tangents = _tangents(params, directions)
        value, slopes, matrix = _second_derivatives(value_fn, params, tangents)
        return _in_accumulator(value, slopes, matrix)


def gauss_newton_along(
    outputs_fn: Callable[[PyTree], PyTree],
    output_loss_fn: Callable[[PyTree], Any],
    params: PyTree,
    directions: Sequence[PyTree],
    *,
    has_aux: bool = False,
) -> DirectionalCurvature:
    r"""Computes slopes and Gauss-Newton curvature within the span of some directions.

    For :math:`f(\theta) = \ell(z(\theta))` with outputs z of Jacobian J,

    .. math:: f(\theta), \qquad d_i^\top \nabla f(\theta), \qquad
        d_i^\top G d_j = (J d_i)^\top\, \nabla^2 \ell(z)\, J d_j,

    by one forward derivative of the model per direction; the second-order part is at
    the outputs, where it costs next to nothing.

    Args:
      outputs_fn: the model, from ``params`` to its outputs, an array or a tree; it must
        not contain a function with a ``jax.custom_vjp``.
      output_loss_fn: from the outputs to a real scalar.
      params: a tree of arrays; leaves that are not floating point take no part.
      directions: trees like ``params``, cast to its dtypes.
      has_aux: whether ``outputs_fn`` returns a pair of the outputs and auxiliary data,
        which are discarded.

    Returns:
      The `DirectionalCurvature`, in float32 or wider.

    Raises:
      TypeError: if a function cannot be called or the output loss is not a real
        scalar.
      ValueError: if there is no direction, or one does not match ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> model = lambda x: jnp.array([x[0] * x[1], x[1]])  # J = [[1, 2], [0, 1]]
      >>> loss = lambda z: 0.5 * jnp.sum(z**2)
      >>> e0, e1 = jnp.eye(2)
      >>> gauss_newton_along(model, loss, jnp.array([2., 1.]), [e0, e1]).matrix
      Array([[1., 2.],
             [2., 5.]], dtype=float32)
    """
    outputs_fn = outputs_alone_fn(outputs_fn, has_aux=has_aux)
    output_loss_fn = output_scalar_fn(output_loss_fn)
    changes = []
    with on_mesh_of(params):
        for tangent in _tangents(params, directions):
            outputs, change = jax.jvp(outputs_fn, (params,), (tangent,))
            changes.append(change)
        value, slopes, matrix = _second_derivatives(output_loss_fn, outputs, changes)
        return _in_accumulator(value, slopes, matrix)


def _tangents(params: PyTree, directions: Sequence[PyTree]) -> list[PyTree]:
    if not directions:
        raise ValueError("directions=[] is empty; give at least one")
    return [
        tangents_of(params, d, f"directions[{i}]") for i, d in enumerate(directions)
    ]


def _second_derivatives(
    fn: Callable[[PyTree], Any], point: PyTree, tangents: Sequence[PyTree]
) -> tuple[jax.Array, list[jax.Array], list[list[jax.Array]]]:
    count = len(tangents)
    slopes: dict[int, jax.Array] = {}
    second: dict[tuple[int, int], jax.Array] = {}
    for i in range(count):

        def slope(p: PyTree, tangent: PyTree = tangents[i]) -> Any:
            return jax.jvp(fn, (p,), (tangent,))

        for j in range(i, count):
            (value, slopes[i]), (_, second[i, j]) = jax.jvp(
                slope, (point,), (tangents[j],)
            )
    rows = [[second[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]
    return value, [slopes[i] for i in range(count)], rows


def _in_accumulator(
    value: jax.Array, slopes: list[jax.Array], matrix: list[list[jax.Array]]
) -> DirectionalCurvature:
    acc = accumulator_dtype(value)
    return DirectionalCurvature(
        value.astype(acc),
        jnp.stack([slope.astype(acc) for slope in slopes]),
        jnp.stack([jnp.stack([x.astype(acc) for x in row]) for row in matrix]),
    )
