"""A secant pair: whether it is taken, and the diagonal curvature after it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, compute_dtype, stored, times
from nlcg_optax.preconditioners.diagonal_scaling import abs_squared
from nlcg_optax.trees.inner_products import named_vdots
from nlcg_optax.xla import scalars

MIN_CURVATURE_COSINE = 1e-6  # below it pᵀH p is rounding, not curvature


class SecantPair(NamedTuple):
    """A secant pair (p, y) as scalars, where p is ``length`` times a tree.

    Attributes:
      finite: whether the squared norm of the gradient is finite.
      due: whether a pair is due.
      good: whether it is taken.
      y_p: ``yᵀp``.
      square: ``length²``.
      old: one over ``pᵀh p + ε``.
      new: one over ``yᵀp + ε``, or over ``yᵀy + ε``.
      eps: ε.
    """

    finite: jax.Array
    due: jax.Array
    good: jax.Array
    y_p: jax.Array
    square: jax.Array
    old: jax.Array
    new: jax.Array
    eps: jax.Array


def judge(
    g: PyTree,
    h: PyTree,
    p: PyTree,
    y: PyTree,
    length: jax.Array,
    due: jax.Array,
    *,
    eps: float | None,
    spectral_scaling: bool,
) -> SecantPair:
    """Takes the inner products of a pair and decides whether the pair is taken.

    Args:
      g: the gradient; no pair is taken if its squared norm is not finite.
      h: the diagonal curvature.
      p: the step, in units of ``length``.
      y: the change of the gradient along ``length`` times p, or along p itself if
        ``eps`` is None.
      length: a scalar in the dtype of the products.
      due: whether a pair is due.
      eps: the ε of `scale_by_diagonal_secant`; None for a y that is a product with the
        Hessian.
      spectral_scaling: whether yᵀy replaces yᵀp in the last term of the formula.

    Returns:
      The pair.
    """
    acc = length.dtype
    pairs = {"g_g": (g, g), "y_p": (y, p), "p_h_p": (jax.tree.map(times, h, p), p)}
    if spectral_scaling or eps is None:
        pairs["y_y"] = (y, y)
    if eps is None:
        pairs["p_p"] = (p, p)
    products = named_vdots(pairs, dtype=acc)
    square = length * length
    y_p, p_h_p = length * products["y_p"], square * products["p_h_p"]
    last = products["y_y"] if spectral_scaling else y_p
    if eps is None:
        offset = jnp.zeros([], acc)
        norms = jnp.sqrt(products["p_p"]) * jnp.sqrt(products["y_y"])
        good = (y_p > MIN_CURVATURE_COSINE * norms) & (p_h_p > 0)
    else:
        offset = jnp.asarray(eps, acc)
        good = (y_p >= offset) & (p_h_p >= offset)
    finite = jnp.isfinite(products["g_g"])
    due &= finite
    good &= due & jnp.isfinite(y_p) & jnp.isfinite(p_h_p) & jnp.isfinite(last)
    square, old, new, good, finite = scalars.computed_once(
        square,
        1 / jnp.where(good, p_h_p + offset, 1),
        1 / jnp.where(good, last + offset, 1),
        good,
        finite,
    )
    return SecantPair(
        finite=finite,
        due=due,
        good=good,
        y_p=y_p,
        square=square,
        old=old,
        new=new,
        eps=offset,
    )


def refreshed(pair: SecantPair, h: PyTree, p: PyTree, y: PyTree) -> PyTree:
    """The diagonal curvature h after a pair; y may have either sign."""

    def leaf_refreshed(h_: jax.Array, p_: jax.Array, y_: jax.Array) -> jax.Array:
        dtype = compute_dtype(h_.dtype)
        wide, square, old, new, eps = (
            x.astype(dtype) for x in (h_, pair.square, pair.old, pair.new, pair.eps)
        )
        p2, y2 = (abs_squared(x).astype(dtype) for x in (p_, y_))
        value = wide - (wide**2 * square * p2 + eps) * old + (y2 + eps) * new
        value = jnp.abs(value)
        taken = pair.good & jnp.isfinite(value)
        return stored(jnp.where(taken, value, wide), h_.dtype)

    return jax.tree.map(leaf_refreshed, h, p, y)
