"""Optax's ``init`` and ``update``, made from functions that take options first."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree
from nlcg_optax.xla.automatic_sharding import on_mesh_of


def transformation(
    options: Any,
    init: Callable[[Any, PyTree], PyTree],
    update: Callable[
        [Any, PyTree, PyTree, PyTree, dict[str, Any]], tuple[PyTree, PyTree]
    ],
    kind: type[optax.GradientTransformationExtraArgs] = (
        optax.GradientTransformationExtraArgs
    ),
) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that converts its arguments to JAX arrays.

    Leaves of the parameters and updates may be Python or NumPy numbers or NumPy arrays.
    ``init`` also takes ``jax.ShapeDtypeStruct``, as Optax's own transformations do.

    Args:
      options: the first argument of both functions.
      init: maps the options and the parameters to the first state.
      update: maps the options, the updates, the state, the parameters and a dictionary
        of the extra arguments to the new updates and state.
      kind: the class of the result.

    Returns:
      The transformation. Its ``init`` raises TypeError for a leaf that is neither an
      array nor a number, such as a function; the message names the leaf.

    Examples:
      >>> tx = transformation(
      ...     2., lambda k, params: k * params,
      ...     lambda k, updates, state, params, extra_args: (k * updates, state))
      >>> tx.init(1.), tx.init(jax.ShapeDtypeStruct([2], "float32"))
      (Array(2., dtype=float32), Array([0., 0.], dtype=float32))
    """

    def init_fn(params: PyTree) -> PyTree:
        with on_mesh_of(params):
            return init(options, jax.tree_util.tree_map_with_path(_initial, params))

    def update_fn(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        updates, params = as_arrays(updates), as_arrays(params)
        with on_mesh_of(updates):
            return update(options, updates, state, params, extra_args)

    return kind(init_fn, update_fn)


def as_arrays(tree: PyTree) -> PyTree:
    """Returns the tree with numbers and NumPy arrays as JAX arrays.

    Examples:
      >>> as_arrays({"w": 1.})
      {'w': Array(1., dtype=float32)}
    """

    def leaf_array(x: Any) -> Any:
        convertible = isinstance(x, numbers.Number) or hasattr(x, "__array__")
        if isinstance(x, jax.Array) or not convertible:
            return x
        return _strong(jnp.asarray(x))

    return jax.tree.map(leaf_array, tree)


def _initial(path: Any, leaf: Any) -> jax.Array:
    """A parameter as ``init`` sees it: never weakly typed; zeros if it is abstract."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros_like(leaf, dtype=leaf.dtype)
    try:
        return _strong(jnp.asarray(leaf))
    except TypeError as error:
        name = f"params{jax.tree_util.keystr(path)}"
        raise TypeError(
            f"{name}={leaf!r} is a {type(leaf).__name__}; allowed are real and complex "
            "floating-point arrays and numbers. Keep other leaves out of the "
            "parameters, such as with equinox.filter(model, equinox.is_inexact_array)"
        ) from error


def _strong(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, x.dtype)
