"""Transformations of vectors that are nested in a preconditioner of matrices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax.dtypes import PyTree
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.inner_products import vdots
from nlcg_optax.wrappers.signs import warn_of_the_sign
from nlcg_optax.xla.automatic_sharding import explained_explicit_axes

AXES_REMEDY = "the default runs on both kinds"
IDENTITY = optax.identity()  # whose sign needs no check
TREES = ("previous_direction", "grad")  # extra arguments like the parameters


class NestedDiagnostics(NamedTuple):
    """Counts the ascents of a nested transformation.

    Attributes:
      num_vector_ascents: updates so far at which ``gᵀP g`` of the vectors was negative.
        If it counts every update, the transformation is sign-flipped, such as
        ``optax.adam(1e-2)`` in place of ``optax.scale_by_adam()``.
    """

    num_vector_ascents: jax.Array


class NestedState(NamedTuple):
    """State of a transformation whose sign is checked.

    Attributes:
      count: number of updates.
      inner_state: state of the transformation.
      diagnostics: the count of ascents.
    """

    count: jax.Array  # type: ignore[assignment]
    inner_state: PyTree
    diagnostics: NestedDiagnostics


class _Options(NamedTuple):
    """The arguments of `with_sign_checked`."""

    name: str
    inner: optax.GradientTransformationExtraArgs
    mask: Callable[[PyTree], PyTree] | None


def for_leaves(
    tx: optax.GradientTransformation, mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformationExtraArgs:
    """``optax.masked`` that cuts the extra arguments `TREES` to the mask, too.

    Its option ``mask_compatible_extra_args`` also replaces the value and functions
    where the tree is a single leaf.

    Args:
      tx: the transformation of some leaves.
      mask: function from the updates to a tree of booleans, True for these leaves.

    Returns:
      The transformation, with the state of ``optax.masked``.

    Examples:
      >>> flip = lambda g, s, p=None, *, grad: (jax.tree.map(jnp.negative, grad), s)
      >>> tx = optax.GradientTransformationExtraArgs(lambda params: (), flip)
      >>> tx = for_leaves(tx, lambda tree: {"a": True, "b": False})
      >>> tree = {"a": 1., "b": 2.}
      >>> tx.update(tree, tx.init(tree), grad={"a": 3., "b": 4.})[0]["b"]
      2.0
    """
    masked = optax.masked(tx, mask)

    def update_fn(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        flags = mask(updates)
        for name in TREES:
            if extra_args.get(name) is not None:
                extra_args[name] = jax.tree.map(
                    lambda is_kept, leaf: leaf if is_kept else optax.MaskedNode(),
                    flags,
                    extra_args[name],
                )
        return masked.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(masked.init, update_fn)


def with_sign_checked(
    name: str,
    tx: optax.GradientTransformation,
    mask: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Counts the updates at which ``tx`` ascends; its output is unmodified.

    Outside of ``jit`` there is also a warning if that happens at the first update.
    The check costs one inner product, of vectors only.

    Args:
      name: name of the argument that takes ``tx``.
      tx: the nested transformation.
      mask: function from the updates to a tree of booleans, True for vectors; by
        default all are. Matrices are not checked where only their norm is used.

    Returns:
      The transformation, with a `NestedState`.

    Examples:
      >>> tx = with_sign_checked("vectors", optax.scale(2.))
      >>> z, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> z, state.diagnostics.num_vector_ascents
      (Array([2.], dtype=float32), Array(0, dtype=int32))
    """
    inner = optax.with_extra_args_support(tx)
    if tx is IDENTITY:
        return inner
    return transformation(_Options(name, inner, mask), _init, _update)


def _init(options: _Options, params: PyTree) -> NestedState:
    return NestedState(
        count=jnp.zeros([], jnp.int32),
        inner_state=options.inner.init(params),
        diagnostics=NestedDiagnostics(jnp.zeros([], jnp.int32)),
    )


def _update(
    options: _Options,
    g: PyTree,
    state: NestedState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, NestedState]:
    with explained_explicit_axes(options.name, AXES_REMEDY):
        z, inner_state = options.inner.update(
            g, state.inner_state, params, **extra_args
        )
    chosen = options.mask or (lambda tree: jax.tree.map(lambda _: True, tree))
    flags = jax.tree.leaves(chosen(g))
    vectors = [
        [leaf for leaf, flag in zip(jax.tree.leaves(tree), flags, strict=True) if flag]
        for tree in (g, z)
    ]
    ascents = state.diagnostics.num_vector_ascents
    if vectors[0]:
        (g_z,) = vdots([(vectors[0], vectors[1])])
        warn_of_the_sign(
            options.name,
            state.count,
            g_z < 0,
            "gᵀP g of the leaves that are not matrices is negative at the first update",
        )
        ascents += (g_z < 0).astype(jnp.int32)
    return z, NestedState(
        count=optax.safe_increment(state.count),
        inner_state=inner_state,
        diagnostics=NestedDiagnostics(ascents),
    )
