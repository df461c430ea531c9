"""Explicit meshes: XLA lays out what JAX refuses to; a missing mesh is set."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from nlcg_optax.dtypes import PyTree
from nlcg_optax.xla.known import is_known


def with_automatic_sharding(
    fn: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    arrays: PyTree,
    numbers: PyTree,
) -> tuple[PyTree, PyTree]:
    """Calls ``fn(arrays, numbers)``; on an explicit mesh XLA chooses how it is split.

    JAX refuses to reshape or to contract a split axis of an explicit mesh unless the
    sharding of the result is given. Inside ``fn`` the mesh is automatic, so that XLA
    inserts the communication: a gather where the mathematics needs one.

    Args:
      fn: a function that closes over no array. It returns arrays of the same shapes as
        ``arrays``, and scalars.
      arrays: a tree of arrays.
      numbers: a tree of scalars, arrays or not.

    Returns:
      The results of ``fn``: the arrays placed like ``arrays``, the scalars on every
      device. Without an explicit mesh, ``fn`` is merely called.

    Examples:
      >>> import jax.numpy as jnp
      >>> with_automatic_sharding(lambda x, k: (k * x, k + 1), jnp.ones(2), 3)
      (Array([3., 3.], dtype=float32), 4)
    """
    mesh = explicit_mesh(arrays)
    if mesh is None:
        return fn(arrays, numbers)
    on_every_device = jax.NamedSharding(mesh, jax.P())
    leaves, treedef = jax.tree.flatten(numbers)
    traced = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array)}

    def on_automatic_mesh(
        arrays: PyTree, traced: dict[int, jax.Array]
    ) -> tuple[PyTree, PyTree]:
        both = [traced.get(i, leaf) for i, leaf in enumerate(leaves)]
        return fn(arrays, jax.tree.unflatten(treedef, both))

    def placed(leaf: jax.Array) -> jax.NamedSharding:
        sharding = jax.typeof(leaf).sharding
        return on_every_device if sharding.mesh.empty else sharding

    out_sharding = (jax.tree.map(placed, arrays), on_every_device)
    return jax.sharding.auto_axes(on_automatic_mesh, out_sharding=out_sharding)(
        arrays, traced
    )


def explicit_mesh(tree: PyTree) -> jax.sharding.AbstractMesh | None:
    """The mesh of the first array that is on a mesh with explicit axes, if any.

    Examples:
      >>> import jax.numpy as jnp
      >>> explicit_mesh(jnp.ones(2)) is None
      True
    """
    for leaf in jax.tree.leaves(tree):
        mesh = jax.typeof(leaf).sharding.mesh
        if jax.sharding.AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def on_mesh_of(tree: PyTree) -> contextlib.AbstractContextManager[object]:
    """Sets the explicit mesh of a tree where the caller has set none.

    Outside of ``jit``, JAX makes new arrays on one device unless a mesh is set, and
    then refuses to combine them with those on the mesh. Inside of ``jit``, ``vmap`` or
    a derivative no mesh can be set; there, or without an explicit mesh, the context
    does nothing.

    Args:
      tree: arrays, or anything else.

    Returns:
      A context manager.

    Examples:
      >>> import jax.numpy as jnp
      >>> with on_mesh_of(jnp.ones(2)):
      ...     jax.sharding.get_abstract_mesh().empty
      True
    """
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array) or not is_known(leaf):
            continue
        mesh = getattr(leaf.sharding, "mesh", None)
        if mesh is None or jax.sharding.AxisType.Explicit not in mesh.axis_types:
            continue
        if jax.sharding.get_abstract_mesh().empty:
            # JAX refuses while it traces, for `vmap` and derivatives too.
            with contextlib.suppress(ValueError):
                context: contextlib.AbstractContextManager[object] = jax.set_mesh(mesh)
                return context
        break
    return contextlib.nullcontext()


def placed_like(tree: PyTree, like: PyTree) -> PyTree:
    """Returns a tree whose arrays are split like those of another of the same shapes.

    Without an explicit mesh it is the identity, as its plain twin always is.

    Examples:
      >>> import jax.numpy as jnp
      >>> placed_like(jnp.ones(2), jnp.zeros(2))
      Array([1., 1.], dtype=float32)
    """
    if explicit_mesh(like) is None:
        return tree
    return jax.tree.map(
        lambda x, other: jax.sharding.reshard(x, jax.typeof(other).sharding), tree, like
    )


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
