"""Optimizers whose parameters are split over devices by hand."""

from typing import Any

import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree
from nlcg_optax.trees.split import AxisName, parameters_split_over


def split_parameters(
    tx: optax.GradientTransformation, axis_name: AxisName
) -> optax.GradientTransformationExtraArgs:
    """Makes the inner products of an optimizer span parameters split by hand.

    Under ``jax.shard_map`` or ``jax.pmap`` a device may hold only its part of each
    parameter. Every reduction over parameters that a transformation of this package
    makes inside ``tx`` then spans ``axis_name``, and so does every test whether they
    are finite; the wrapper therefore goes outside of `virtual_batch`. Do not use it
    under plain ``jit`` with shardings, or if every device holds all parameters (data
    parallelism).

    Args:
      tx: an optimizer made of transformations of this package and of Optax. Optax's
        own reductions, such as those of ``optax.clip_by_global_norm``, are not changed.
      axis_name: name or names of the mapped axes.

    Returns:
      The transformation, with the state of ``tx`` itself.

    Raises:
      TypeError: if ``tx`` is not a transformation, or ``axis_name`` is neither a name
        nor a tuple of names.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from nlcg_optax import diagnostics, nlcg
      >>> tx = split_parameters(nlcg(0.1, "fr"), "parts")
      >>> def grad_norm(part):
      ...     _, state = tx.update(part, tx.init(part), part)
      ...     return diagnostics(state)["grad_norm"]
      >>> jax.vmap(grad_norm, axis_name="parts")(jnp.array([[3.], [4.]]))
      Array([5., 5.], dtype=float32)
    """
    validation.check_transformation("tx", tx)
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"axis_name={axis_name!r} must be the name of a mapped axis or a tuple of "
            "such names"
        )
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: PyTree) -> PyTree:
        with parameters_split_over(axis_name):
            return tx.init(params)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        with parameters_split_over(axis_name):
            return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
