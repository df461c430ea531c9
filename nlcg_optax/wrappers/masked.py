"""Lets a loss of all parameters be called with a partly masked tree."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree


def fill_masked(
    value_fn: Callable[..., Any], full_params: PyTree
) -> Callable[..., Any]:
    """Makes a function of all parameters callable with a partly masked tree.

    Inside ``optax.masked`` and ``optax.partition`` a transformation sees
    ``optax.MaskedNode`` in place of the parameters of other transformations, but
    ``value_fn`` needs the whole tree. With ``value_fn=fill_masked(value_fn, params)``
    in ``update``, curvature products and line searches work there; wrap an
    ``outputs_fn`` in the same way. In both, ``mask_compatible_extra_args=True`` masks a
    line search's ``grad``.

    Args:
      value_fn: a function ``value_fn(params, ...)`` of the full tree.
      full_params: the tree that masked leaves are taken from.

    Returns:
      A function of a tree like ``full_params`` in which ``optax.MaskedNode`` marks
      leaves or subtrees to be filled in. It has the signature of ``value_fn``, so
      that extra arguments of ``update`` still reach it by name.

    Raises:
      TypeError: if ``value_fn`` cannot be called.

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

    @functools.wraps(value_fn)
    def filled_fn(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        filled = jax.tree.map(
            lambda own, full: full if is_masked(own) else own,
            params,
            full_params,
            is_leaf=is_masked,
        )
        return value_fn(filled, *args, **kwargs)

    return filled_fn
