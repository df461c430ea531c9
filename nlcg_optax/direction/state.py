"""State and diagnostics of the NLCG direction."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree


class NlcgDiagnostics(NamedTuple):
    """What the last call of `scale_by_nlcg`'s update did, as scalars.

    Attributes:
      beta: the β that was used, zero at a restart; the mean over leaves in the scope
        ``"per_leaf"``.
      cosine: cosine of the angle between ``-g`` and ``d``.
      grad_norm: Euclidean norm of the gradient that came in.
      direction_norm: Euclidean norm of ``d``.
      restarted: whether β was set to zero (in any leaf), the first step included.
      skipped: whether the step was skipped because something was not finite; the
        other fields are then those of the last step that was taken.
      num_restarts: restarts so far, the first step included.
      num_skips: skipped steps so far.
    """

    beta: jax.Array
    cosine: jax.Array
    grad_norm: jax.Array
    direction_norm: jax.Array
    restarted: jax.Array
    skipped: jax.Array
    num_restarts: jax.Array
    num_skips: jax.Array


def no_diagnostics(dtype: jnp.dtype) -> NlcgDiagnostics:
    """The diagnostics before the first update, with norms of a dtype.

    Examples:
      >>> no_diagnostics(jnp.float32).num_restarts
      Array(0, dtype=int32)
    """
    # Distinct buffers: donation must not meet one twice.
    return NlcgDiagnostics(
        beta=jnp.zeros([], dtype),
        cosine=jnp.zeros([], dtype),
        grad_norm=jnp.zeros([], dtype),
        direction_norm=jnp.zeros([], dtype),
        restarted=jnp.zeros([], jnp.bool_),
        skipped=jnp.zeros([], jnp.bool_),
        num_restarts=jnp.zeros([], jnp.int32),
        num_skips=jnp.zeros([], jnp.int32),
    )


class ScaleByNlcgState(NamedTuple):
    """State of `scale_by_nlcg`.

    A tree that the rule does not need is the empty tuple. The scalars are vectors
    with an entry a leaf in the scope ``"per_leaf"``.

    Attributes:
      count: number of steps taken (skipped ones do not count).
      direction: the previous search direction d.
      grad_prev: the previous gradient.
      precond_grad_prev: the previous ``z = P g``.
      g_prev_z_prev: previous ``gᵀz``.
      d_g_prev: slope ``dᵀg`` at which ``direction`` set out.
      d_d: ``dᵀd`` of ``direction``.
      d_pinv_d: ``dᵀP⁻¹d`` of ``direction``.
      beta_average: exponential average of the clipped β.
      recent: the last directions, a `recent_directions.RecentDirections`.
      preconditioner_state: state of the nested preconditioner.
      diagnostics: what the last update did.
    """

    count: jax.Array  # type: ignore[assignment]
    direction: PyTree
    grad_prev: PyTree
    precond_grad_prev: PyTree
    g_prev_z_prev: jax.Array
    d_g_prev: jax.Array
    d_d: jax.Array
    d_pinv_d: jax.Array
    beta_average: jax.Array
    recent: PyTree
    preconditioner_state: PyTree
    diagnostics: NlcgDiagnostics


def unguarded_kept(finite: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Selects the new state of a preconditioner where a step is finite, else the old.

    A state with a true attribute ``guards_itself`` is taken as it is: its
    transformation leaves it alone at a gradient whose norm is not finite, and a
    selection would make XLA keep both, which is a copy of every array in it. Inside
    another state, as in a chain, the attribute does not count: there the gradient that
    the transformation sees is another one.

    Examples:
      >>> import jax.numpy as jnp
      >>> unguarded_kept(jnp.array(False), jnp.float32(2.), jnp.float32(1.))
      Array(1., dtype=float32)
    """
    if getattr(new, "guards_itself", False) is True:
        return new
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


def products_taken(new: PyTree, old: PyTree) -> dict[str, jax.Array]:
    """Inner products that a preconditioner took in an update, by name.

    They come from a method ``products_taken`` of its new state, if it has one, like
    that of `scale_by_diagonal_secant`. Inside another state, as in a chain, the method
    does not count: there the gradient that the transformation sees is another one.

    Args:
      new: its state after the update.
      old: its state before.

    Returns:
      Some of the products that `scale_by_nlcg` needs: not finite where the update was
      of a gradient whose norm is not.

    Examples:
      >>> products_taken((), ())
      {}
    """
    taken = getattr(new, "products_taken", None)
    return {} if taken is None else taken(old)
