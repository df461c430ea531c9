"""The inner products of a direction, in its only reduction over parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.direction.state import ScaleByNlcgState
from nlcg_optax.dtypes import PyTree, difference
from nlcg_optax.trees.inner_products import Scope, named_vdots


class Needs(NamedTuple):
    """What a direction must measure and store.

    Attributes:
      products: names of the products to take, fields of `Measured`.
      grad_prev: whether the previous gradient is stored.
      precond_grad_prev: whether the previous preconditioned gradient is stored.
    """

    products: tuple[str, ...]
    grad_prev: bool
    precond_grad_prev: bool


class Measured(NamedTuple):
    """Inner products of one step; those that are not needed are zero.

    Notation as in `InnerProducts`: the gradient g, ``z = P g``, the previous direction
    d and ``y = g - g_prev``. In the scope ``"per_leaf"`` the products are vectors with
    one entry per leaf, otherwise scalars.

    Attributes:
      g_g: ``gᵀg``.
      d_g: ``dᵀg``.
      g_z: ``gᵀz``.
      z_z: ``zᵀz``.
      d_z: ``dᵀz``.
      y_z: ``yᵀz``.
      d_y: ``dᵀy``; without a stored gradient, ``dᵀg`` less the stored ``dᵀg_prev``,
        or zero where their difference is rounding.
      g_z_prev: ``gᵀz_prev``.
      y_p_y: ``yᵀ(z - z_prev)``.
      rounding: relative error of these products and of the update.
      noise: by how much ``gᵀz`` is too large, if that was measured (see
        `nlcg_optax.contrib.scale_by_nlcg_across_halves`).
    """

    g_g: jax.Array
    d_g: jax.Array
    g_z: jax.Array
    z_z: jax.Array
    d_z: jax.Array
    y_z: jax.Array
    d_y: jax.Array
    g_z_prev: jax.Array
    y_p_y: jax.Array
    rounding: float
    noise: jax.Array | float = 0.0


def needs_of(reads: frozenset[str], *, preconditioned: bool, powell: bool) -> Needs:
    """Returns what a direction needs.

    Args:
      reads: fields of `InnerProducts` that the rule reads.
      preconditioned: whether there is a preconditioner; otherwise z is g.
      powell: whether Powell's test is made, which reads ``yᵀz``.

    Returns:
      The needs.

    Examples:
      >>> needs_of(frozenset({"y_z"}), preconditioned=False, powell=False).products
      ('g_g', 'd_g', 'y_z')
    """
    reads = reads | {"y_z"} if powell else reads
    has_y = bool(reads & {"y_z", "y_p_y"})
    taken = {"g_g", "d_g"} | (reads & {"y_z", "y_p_y", "g_z_prev"})
    if has_y:
        taken |= reads & {"d_y"}
    if preconditioned:
        taken |= {"g_z", "z_z", "d_z"}
    return Needs(
        products=tuple(name for name in Measured._fields if name in taken),
        grad_prev=has_y or ("g_z_prev" in reads and not preconditioned),
        precond_grad_prev=preconditioned and bool(reads & {"g_z_prev", "y_p_y"}),
    )


def measure(
    needs: Needs, g: PyTree, z: PyTree, state: ScaleByNlcgState, scope: Scope
) -> Measured:
    """Takes the inner products of a step.

    Args:
      needs: which products to take.
      g: the gradient.
      z: the preconditioned gradient.
      state: state of the direction before the step.
      scope: scope of the products.

    Returns:
      The products.
    """
    acc = state.d_d.dtype
    # The name a_b of a product says which trees to multiply: a has one letter.
    factors = {"g": g, "d": state.direction, "z": z, "z_prev": state.precond_grad_prev}
    if not needs.precond_grad_prev:
        factors["z_prev"] = state.grad_prev
    if needs.grad_prev:
        factors["y"] = factors["p_y"] = difference(g, state.grad_prev)
    if "y_p_y" in needs.products and needs.precond_grad_prev:
        factors["p_y"] = difference(z, state.precond_grad_prev)
    pairs = {name: (factors[name[0]], factors[name[2:]]) for name in needs.products}
    products = named_vdots(pairs, scope=scope, dtype=acc)
    g_g, d_g = products["g_g"], products["d_g"]
    zero = jnp.zeros_like(g_g)
    without_p = {"g_z": g_g, "z_z": g_g, "d_z": d_g}  # where z is g
    others = {"y_z": zero, "g_z_prev": zero, "y_p_y": zero}
    rounding = _rounding_unit(g, acc)
    if "d_y" not in products:
        # Two equal gradients have y = 0, but the stored slope is from a recurrence,
        # and of the direction before it was rounded to be stored.
        d_y = d_g - state.d_g_prev
        stored = max(rounding, _rounding_unit(state.direction, acc))
        known = jnp.abs(d_y) > stored * jnp.sqrt(g_g) * jnp.sqrt(state.d_d)
        products["d_y"] = jnp.where(known, d_y, 0)
    return Measured(**{**without_p, **others, **products}, rounding=rounding)


def _rounding_unit(tree: PyTree, acc: jnp.dtype) -> float:
    # The update is rounded to the dtypes of the gradient. The sums are rounded too, by
    # fewer than 64 units of the accumulator, see `joint_reductions.LONGEST_RUN`.
    units = [float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree)]
    return max([64 * float(jnp.finfo(acc).eps), *units])
