"""The result of a minimization as a function with derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nlcg_optax.dtypes import PyTree
from nlcg_optax.minimization.result import MinimizeResult

Run = Callable[[PyTree, Any, PyTree], MinimizeResult]
Tangents = Callable[[PyTree, Any, Any, jax.Array], tuple[PyTree, jax.Array, PyTree]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def solve_implicitly(
    run: Run, tangents: Tangents, u0: PyTree, inputs: Any, settings: PyTree
) -> MinimizeResult:
    """Runs a minimization whose result has derivatives with respect to ``inputs``.

    Args:
      run: the minimization, ``run(u0, inputs, settings)``.
      tangents: ``tangents(x, inputs, inputs_dot, success)``, the tangents of ``x``,
        ``fun`` and ``aux`` at a minimizer.
      u0: where to begin; the minimizer does not depend on it.
      inputs: what the objective depends on.
      settings: whatever else ``run`` needs; without derivatives.

    Returns:
      The result. Its ``x``, ``fun`` and ``aux`` have derivatives, those of all other
      parts are zero.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nlcg_optax import minimize
      >>> def nearest(a):
      ...     return minimize(lambda x: jnp.sum((x - a)**2), jnp.zeros(2)).x
      >>> jax.jacobian(nearest)(jnp.array([1., 2.]))
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    del tangents
    return run(u0, inputs, settings)


@solve_implicitly.defjvp
def _solve_implicitly_jvp(
    run: Run,
    tangents: Tangents,
    primals: tuple[PyTree, Any, PyTree],
    primals_dot: tuple[PyTree, Any, PyTree],
) -> tuple[MinimizeResult, MinimizeResult]:
    (u0, inputs, settings), (_, inputs_dot, _) = primals, primals_dot
    end = solve_implicitly(run, tangents, u0, inputs, settings)
    x_dot, fun_dot, aux_dot = tangents(end.x, inputs, inputs_dot, end.success)
    zero = jax.tree.map(_zero_tangent, end)
    fun_dot = fun_dot.astype(end.fun.dtype)
    return end, zero._replace(x=x_dot, fun=fun_dot, aux=aux_dot)


def _zero_tangent(x: jax.Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
