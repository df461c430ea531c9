"""State and diagnostics of the direction."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree


class NlcgDiagnostics(NamedTuple):
    """Scalars about the last call of ``update`` of `scale_by_nlcg`.

    Attributes:
      beta: the β that was used, zero at a restart; the mean over leaves in the scope
        ``"per_leaf"``.
      cosine: cosine of the angle between ``-g`` and ``d``.
      grad_norm: Euclidean norm of the gradient.
      direction_norm: Euclidean norm of ``d``.
      restarted: whether β was set to zero (in any leaf), the first step included.
      skipped: whether the step was skipped because something was not finite; the
        other fields are then those of the last step that was taken.
      num_restarts: restarts so far, the first step included.
      num_skips: skipped steps so far.
      num_preconditioner_skips: steps so far at which ``gᵀP g`` was not positive (in
        any leaf) although the gradient was not zero, so that ``P = I`` replaced the
        preconditioner. If it counts every step, the preconditioner is sign-flipped,
        such as ``optax.adam(1e-2)`` in place of ``optax.scale_by_adam()``.
    """

    beta: jax.Array
    cosine: jax.Array
    grad_norm: jax.Array
    direction_norm: jax.Array
    restarted: jax.Array
    skipped: jax.Array
    num_restarts: jax.Array
    num_skips: jax.Array
    num_preconditioner_skips: jax.Array


def no_diagnostics(dtype: jnp.dtype) -> NlcgDiagnostics:
    """The diagnostics before the first update, with norms of a dtype.

    Examples:
      >>> no_diagnostics(jnp.float32).num_restarts
      Array(0, dtype=int32)
    """
    # One array per field: `jax.jit` cannot donate an array twice.
    return NlcgDiagnostics(
        beta=jnp.zeros([], dtype),
        cosine=jnp.zeros([], dtype),
        grad_norm=jnp.zeros([], dtype),
        direction_norm=jnp.zeros([], dtype),
        restarted=jnp.zeros([], jnp.bool_),
        skipped=jnp.zeros([], jnp.bool_),
        num_restarts=jnp.zeros([], jnp.int32),
        num_skips=jnp.zeros([], jnp.int32),
        num_preconditioner_skips=jnp.zeros([], jnp.int32),
    )


class ScaleByNlcgState(NamedTuple):
    """State of `scale_by_nlcg`.

    A tree that the rule does not need is the empty tuple. The scalars are vectors
    with one entry per leaf in the scope ``"per_leaf"``.

    Attributes:
      count: number of steps taken (skipped ones do not count).
      direction: the previous search direction d.
      grad_prev: the previous gradient.
      precond_grad_prev: the previous ``z = P g``.
      g_prev_z_prev: previous ``gᵀz``.
      d_g_prev: slope ``dᵀg`` at the start of the step along ``direction``.
      d_d: ``dᵀd`` of ``direction``.
      d_pinv_d: ``dᵀP⁻¹d`` of ``direction``.
      beta_average: exponential average of the clipped β.
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
    preconditioner_state: PyTree
    diagnostics: NlcgDiagnostics
