"""Computations on meshes with explicit axes that need more than one shard."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding

from nlcg_optax.dtypes import PyTree


def with_auto_axes(
    fn: Callable[..., PyTree], args: tuple[Any, ...], like: PyTree
) -> Any:
    """Computes ``fn(*args)``, its twin, also where no explicit sharding is possible.

    On a mesh with explicit axes JAX asks every operation for the sharding of its
    result, and refuses, for example, to reshape a split axis. Here XLA chooses, as it
    does on automatic axes, and gathers where the computation needs it; the results are
    then placed like arrays that are given.

    Args:
      fn: function of the arguments.
      args: trees of arrays, and of Python numbers, which stay what they are.
      like: a tree like the result; each array is placed like this one.

    Returns:
      The result.

    Examples:
      >>> import jax.numpy as jnp
      >>> with_auto_axes(lambda x: x.reshape(2, 2), (jnp.ones(4),), jnp.ones([2, 2]))
      Array([[1., 1.],
             [1., 1.]], dtype=float32)
    """
    leaves, treedef = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    meshes = [_explicit_mesh(leaves[i]) for i in places]
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    if mesh is None:
        return fn(*args)

    def of_arrays(*arrays: jax.Array) -> PyTree:
        filled = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            filled[i] = array
        return fn(*jax.tree.unflatten(treedef, filled))

    shardings = jax.tree.map(lambda x: NamedSharding(mesh, _spec(x)), like)
    automatic = jax.sharding.auto_axes(
        of_arrays, axes=_explicit_axes(mesh), out_sharding=shardings
    )
    return automatic(*(leaves[i] for i in places))


def sharding_of_axes(leaf: Any, axes: tuple[int, ...]) -> NamedSharding | None:
    """How an array with some leading axes of another is to be placed beside it.

    Args:
      leaf: an array, or its shape and dtype.
      axes: those of its axes that the other array has, too.

    Returns:
      The sharding of these axes; None if the mesh has no explicit axes.

    Examples:
      >>> import jax.numpy as jnp
      >>> sharding_of_axes(jnp.ones([2, 3]), (0,)) is None
      True
    """
    mesh = _explicit_mesh(leaf)
    if mesh is None:
        return None
    spec = (*_spec(leaf), *[None] * leaf.ndim)
    return NamedSharding(mesh, jax.P(*(spec[axis] for axis in axes)))


@contextlib.contextmanager
def explained_explicit_axes(part: str, remedy: str) -> Iterator[None]:
    """Says which part of a program cannot run on explicit axes, and what to do.

    Args:
      part: the argument whose computation is inside.
      remedy: what runs instead.

    Raises:
      ValueError: where JAX asks for a sharding that the part does not give.

    Examples:
      >>> with explained_explicit_axes("linesearch", "use another"):
      ...     pass
    """
    try:
        yield
    except Exception as error:
        # JAX's class for this is not public.
        if type(error).__name__ != "ShardingTypeError":
            raise
        raise ValueError(
            f"{part} cannot run where parameters are split over explicit axes of a "
            f"mesh: {error} Give the mesh axes of jax.sharding.AxisType.Auto; "
            f"{remedy}."
        ) from error


def _sharding(leaf: Any) -> Any:
    is_concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return leaf.sharding if is_concrete else jax.typeof(leaf).sharding


def _spec(leaf: Any) -> jax.P:
    return jax.typeof(leaf).sharding.spec


def _explicit_mesh(leaf: Any) -> Any:
    sharding = _sharding(leaf)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if mesh is not None and _explicit_axes(mesh) else None


def _explicit_axes(mesh: Any) -> tuple[str, ...]:
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in pairs if kind == AxisType.Explicit)
