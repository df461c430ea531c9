"""The real coordinates that `minimize` works in, and the tree that they stand for.

A complex array is a pair of real ones, so that all the algebra is real. A small tree is
one vector: its cost would otherwise be dominated by launching and compiling one
operation per array.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree

LONGEST_VECTOR = 8192  # a tree of at most this many numbers becomes one vector
# Several arrays become one vector whose length is a multiple of this. It fills whole
# SIMD registers, so that no code has to be compiled for a remainder.
MULTIPLE = 32


class Coordinates(NamedTuple):
    """How a tree is written in real coordinates; made by `coordinates_of`.

    Attributes:
      like: shapes and dtypes of the tree.
      is_vector: whether its coordinates are one vector, which ends in zeros if it is
        made of several arrays.
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
      may_be_vector: whether the arrays may be merged. They become one vector if they
        have one dtype, at most `LONGEST_VECTOR` numbers and no explicit sharding.

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
