"""The conjugacy rules of the program of arXiv 1812.02886."""

import jax

from nlcg_optax.direction.rules import ConjugacyRule, InnerProducts, ratio

EPS = 1e-8  # of the paper's program, added to the denominators


def fletcher_reeves(p: InnerProducts) -> jax.Array:
    """FR: ``β = gᵀz / (g_prevᵀz_prev + 1e-8)``.

    Examples:
      >>> import jax.numpy as jnp
      >>> p = InnerProducts(*map(jnp.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> fletcher_reeves(p)
      Array(2., dtype=float32)
    """
    return ratio(p.g_z, p.g_prev_z_prev + EPS)


def polak_ribiere(p: InnerProducts) -> jax.Array:
    """PR with the stored residual: ``β = (gᵀz - gᵀz_prev) / (g_prevᵀz_prev + 1e-8)``.

    Here ``z_prev`` is the preconditioned gradient as it was stored at the previous
    step. Except for the 1e-8, this is PR if P is constant and symmetric.

    Examples:
      >>> import jax.numpy as jnp
      >>> p = InnerProducts(*map(jnp.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> polak_ribiere(p)
      Array(1.5, dtype=float32)
    """
    return ratio(p.g_z - p.g_z_prev, p.g_prev_z_prev + EPS)


PAPER_RULES: dict[str, ConjugacyRule] = {"fr": fletcher_reeves, "pr": polak_ribiere}
