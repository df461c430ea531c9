"""The real coordinates that `minimize` works in, and the tree that they stand for.

A complex array is a pair of real ones, so that all the algebra is real. A small tree
is one vector: its time goes into launching operations, and into compiling them, which
otherwise are needed for every array.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree

LONGEST_VECTOR = 8192  # numbers in all, up to which a tree is made one vector
# Of several arrays one vector is made whose length is a multiple of this: a processor's
# vectors then leave no rest, for which code would have to be compiled.
MULTIPLE = 32


class Coordinates(NamedTuple):
    """How a tree is written in real coordinates; made by `coordinates_of`.

    Attributes:
      like: shapes and dtypes of the tree.
      is_vector: whether its coordinates are one vector; of several arrays with zeros
        after them.
    """

    like: PyTree
    is_vector: bool

    def of(self, x: PyTree) -> PyTree:
        """Returns the coordinates of a tree: a vector, or a tree of real arrays.

        Examples:
          >>> import jax.numpy as jnp
          >>> x = {"a": jnp.array([[1.]]), "b": jnp.array([2., 3.])}
          >>> u = coordinates_of(x, may_be_vector=True).of(x)
          >>> u[:4], u.size
          (Array([1., 2., 3., 0.], dtype=float32), 32)
        """
        parts = jax.tree.map(_real_parts, x)
        if not self.is_vector:
            return parts
        flat = [jnp.ravel(part) for part in jax.tree.leaves(parts)]
        if len(flat) == 1:
            return flat[0]
        rest = -sum(part.size for part in flat) % MULTIPLE
        return jnp.concatenate([*flat, jnp.zeros(rest, flat[0].dtype)])

    def tree(self, u: PyTree) -> PyTree:
        """Returns the tree that has the given coordinates.

        Examples:
          >>> import jax.numpy as jnp
          >>> x = jnp.array([1. + 2.j])
          >>> coordinates_of(x, may_be_vector=True).tree(jnp.array([3., 4., 0., 0.]))
          Array([3.+4.j], dtype=complex64)
        """
        if self.is_vector:
            leaves, structure = jax.tree.flatten(_parts_like(self.like))
            ends = list(itertools.accumulate(leaf.size for leaf in leaves))
            shaped = [
                part.reshape(leaf.shape)
                for part, leaf in zip(jnp.split(u, ends), leaves, strict=False)
            ]
            u = jax.tree.unflatten(structure, shaped)
        return jax.tree.map(_joined, self.like, u)


def coordinates_of(x: PyTree, *, may_be_vector: bool) -> Coordinates:
    """Decides how to write a tree in real coordinates.

    Args:
      x: a tree of real or complex floating-point arrays.
      may_be_vector: whether the arrays need not be kept apart. They become one vector
        if they are of one dtype, have `LONGEST_VECTOR` numbers at most and no explicit
        sharding.

    Returns:
      The coordinates.

    Examples:
      >>> import jax.numpy as jnp
      >>> x = (jnp.zeros([2, 3]), jnp.zeros([], jnp.complex64))
      >>> coordinates_of(x, may_be_vector=True).is_vector
      True
    """
    like = jax.eval_shape(lambda tree: tree, x)
    parts = jax.tree.leaves(_parts_like(like))
    axis_types = jax.sharding.get_abstract_mesh().axis_types
    is_vector = (
        may_be_vector
        and len({part.dtype for part in parts}) == 1
        and sum(part.size for part in parts) <= LONGEST_VECTOR
        and jax.sharding.AxisType.Explicit not in axis_types
    )
    return Coordinates(like, is_vector)


def _parts_like(like: PyTree) -> PyTree:
    return jax.eval_shape(lambda tree: jax.tree.map(_real_parts, tree), like)


def _real_parts(x: jax.Array) -> Any:
    return (jnp.real(x), jnp.imag(x)) if jnp.iscomplexobj(x) else x


def _joined(like: Any, part: Any) -> jax.Array:
    is_complex = jnp.issubdtype(like.dtype, jnp.complexfloating)
    return jax.lax.complex(*part) if is_complex else part
