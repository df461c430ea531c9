"""Derivatives of a minimiser by the implicit function theorem."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nlcg_optax.dtypes import PyTree
from nlcg_optax.minimization.state import MinimizeState

# Of the conjugate gradients that solve with the Hessian, relative to the right side.
TOLERANCE = 1e-10

Objective = Callable[..., tuple[jax.Array, PyTree]]
Run = Callable[[Objective, PyTree, tuple[Any, ...], PyTree], MinimizeState]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def solve_implicitly(
    run: Run, objective: Objective, x0: PyTree, args: tuple[Any, ...], settings: PyTree
) -> MinimizeState:
    r"""Runs a minimisation whose best point has derivatives with respect to ``args``.

    At a minimiser :math:`\nabla f(x, a) = 0`, hence

    .. math:: \nabla^2_{xx} f\; \dot x = -\nabla^2_{xa} f\; \dot a,

    solved by conjugate gradients. All other parts of the state have derivative zero.

    Args:
      run: the minimisation, ``run(objective, x0, args, settings)``.
      objective: ``objective(x, *args)``, the value and an auxiliary tree.
      x0: where to begin; the minimiser does not depend on it.
      args: what the objective depends on.
      settings: whatever else ``run`` needs; without derivatives.

    Returns:
      The last state of the run.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nlcg_optax import minimize
      >>> def nearest(a):
      ...     return minimize(lambda x: jnp.sum((x - a)**2), jnp.zeros(2)).x
      >>> jax.jacobian(nearest)(jnp.array([1., 2.]))
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    return run(objective, x0, args, settings)


@solve_implicitly.defjvp
def _solve_implicitly_jvp(
    run: Run,
    objective: Objective,
    primals: tuple[PyTree, tuple[Any, ...], PyTree],
    tangents: tuple[PyTree, tuple[Any, ...], PyTree],
) -> tuple[MinimizeState, MinimizeState]:
    (x0, args, settings), (_, args_dot, _) = primals, tangents
    end = solve_implicitly(run, objective, x0, args, settings)
    x = end.best_params

    def gradient(x_: PyTree, *args_: Any) -> PyTree:
        return jax.grad(lambda v: objective(v, *args_)[0])(x_)

    def hessian(v: PyTree) -> PyTree:
        return jax.jvp(lambda x_: gradient(x_, *args), (x,), (v,))[1]

    _, right = jax.jvp(lambda *args_: gradient(x, *args_), args, args_dot)
    minus = jax.tree.map(jnp.negative, right)
    # cg alone has no transpose where its right side is linear in a tangent, and so no
    # reverse mode (jax 0.10.2); the wrapper has.
    x_dot = jax.lax.custom_linear_solve(
        hessian,
        minus,
        lambda matvec, b: jax.scipy.sparse.linalg.cg(matvec, b, tol=TOLERANCE)[0],
        symmetric=True,
    )
    end_dot = jax.tree.map(_zero_tangent, end)
    return end, end_dot._replace(best_params=x_dot)


def _zero_tangent(x: jax.Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
