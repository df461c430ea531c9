"""Minimisation of a deterministic function: the whole loop, compiled."""

import functools
import math
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, accumulator_dtype
from nlcg_optax.minimization import loop as minimize_loop
from nlcg_optax.minimization import state as minimize_state
from nlcg_optax.minimization.coordinates import coordinates_of
from nlcg_optax.minimization.implicit import solve_implicitly
from nlcg_optax.minimization.methods import Method, get_method
from nlcg_optax.minimization.result import MinimizeResult, Status
from nlcg_optax.minimization.state import (
    Iterations,
    Limits,
    MinimizeState,
    Progress,
    TolKind,
)
from nlcg_optax.xla.shared_constants import share_constants

TOLERANCES = get_args(TolKind)


def minimize(
    fun: Callable[..., Any],
    x0: PyTree,
    *,
    args: tuple[Any, ...] = (),
    has_aux: bool = False,
    method: str | Method | optax.GradientTransformation = "limited-memory",
    tol: float | jax.Array = 1e-6,
    tol_kind: TolKind = "value",
    max_iterations: int | jax.Array = 10_000,
    max_evaluations: float | jax.Array = 10_000,
    patience: int | jax.Array = 1000,
    state: MinimizeState | None = None,
    new_objective: bool = False,
    callback: Callable[[Progress], None] | None = None,
) -> MinimizeResult:
    r"""Minimises a smooth function of a pytree of arrays.

    A descent direction from ``method``, the Hager-Zhang line search
    (`scale_by_hager_zhang_linesearch`) along it, merged into one loop that has one
    gradient in it. It ends when

    .. math:: \max_i |g_i| \le \mathrm{tol} \cdot
        \{1 + |f|, \; 1, \; \max_i |g_i(x_0)|\}

    for the ``tol_kind`` ``"value"``, ``"absolute"`` and ``"relative"``. Where f is
    below :math:`-|f(x_0)|` its size counts only once the gradient has fallen to a
    tenth of the largest one seen: on the way to minus infinity any gradient gets small
    against the value.

    It works under ``jit`` and ``vmap``. The solution ``x`` has derivatives with respect
    to everything that ``fun`` depends on, ``args`` and closed-over arrays, by the
    implicit function theorem, :math:`\nabla^2 f\, dx = -d\nabla f`, solved by
    conjugate gradients on Hessian-vector products; they are those of an exact
    stationary point with a positive definite Hessian. The other results carry none.

    Inside, the arrays are real, and those of a small tree are one vector (at most 8192
    numbers of one dtype, with a method that `Method.may_be_vector`, as by name): that
    compiles and runs faster. Large floating-point arrays that ``fun`` closes over are
    held once.

    Args:
      fun: ``fun(x, *args)``, a real scalar, or a pair of it and an auxiliary tree.
      x0: where to begin: a tree of real or complex floating-point arrays.
      args: further arguments of ``fun``.
      has_aux: whether ``fun`` returns that pair.
      method: a name out of `nlcg_optax.minimization.methods.names`, that is
        ``"limited-memory"`` (31 secant pairs as the metric of NLCG) or a conjugacy
        rule such as ``"hs+"`` or ``"hz"`` for two-term NLCG; a `Method`; or a
        transformation whose updates are -d.
      tol: tolerance, positive.
      tol_kind: what it is relative to.
      max_iterations: limit on iterations.
      max_evaluations: limit on the work: a value with its gradient counts one, a
        value alone a third.
      patience: iterations without a smaller objective or a halved gradient after
        which it gives up.
      state: ``result.state`` of an earlier call with the same ``method`` and shapes, to
        go on where that ended, under new limits; the counters go on, too. ``x0`` then
        only gives the shapes.
      new_objective: whether ``fun`` or ``args`` are others than in the call that
        ``state`` is of, as along a path of problems (continuation). The point is then
        measured anew and the counters begin at zero; kept are the secant pairs or
        the previous direction, and the last step.
      callback: called on the host with a `Progress` after each iteration; for
        display, not for control.

    Returns:
      A `MinimizeResult`. The best point is kept: ``fun`` is never above f(x0).

    Raises:
      TypeError: if ``fun`` does not return a real floating-point scalar or ``x0`` has
        a leaf that is not floating point.
      ValueError: if an argument is out of its range, or ``new_objective`` comes without
        a ``state``.

    Examples:
      >>> import jax.numpy as jnp
      >>> def rosenbrock(x, scale):
      ...     return jnp.sum((1 - x[:-1])**2 + scale * (x[1:] - x[:-1]**2)**2)
      >>> result = minimize(rosenbrock, jnp.array([-1.2, 1.]), args=(100.,), tol=1e-4)
      >>> bool(result.success), result.message
      (True, 'the gradient is as small as tol asks')
      >>> bool(jnp.max(jnp.abs(result.x - 1.)) < 1e-2)
      True
    """
    _check(fun, tol, tol_kind, max_iterations, max_evaluations, patience)
    if new_objective and state is None:
        raise ValueError(
            "new_objective=True needs a state, of an earlier call; got None"
        )
    chosen = get_method(method)
    x0 = jax.tree.map(jnp.asarray, x0)
    accumulator_dtype(x0)
    _check_objective(fun, x0, args, has_aux)
    limits = {
        "tol": tol,
        "max_iterations": max_iterations,
        "max_evaluations": max_evaluations,
        "patience": patience,
    }
    # Traced as part of a larger program, numbers become constants of that: XLA has
    # fewer operands of the loop to look after. Else they must not cost a compilation.
    leaves = jax.tree.leaves((x0, args, state))
    is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    fixed = {
        name: limit
        for name, limit in limits.items()
        if is_traced and isinstance(limit, (int, float))
    }
    return _minimize(
        fun,
        has_aux,
        chosen,
        callback,
        bool(new_objective),
        (("tol_kind", tol_kind), *fixed.items()),
        x0,
        args,
        {name: limits[name] for name in limits.keys() - fixed.keys()},
        state,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _minimize(
    fun: Callable[..., Any],
    has_aux: bool,
    method: Method,
    callback: Callable[[Progress], None] | None,
    new_objective: bool,
    fixed_limits: tuple[tuple[str, Any], ...],
    x0: PyTree,
    args: tuple[Any, ...],
    limits: dict[str, Any],
    state: MinimizeState | None,
) -> MinimizeResult:
    coordinates = coordinates_of(x0, may_be_vector=method.may_be_vector)

    def objective(u: PyTree, *args: Any) -> tuple[jax.Array, PyTree]:
        out = fun(coordinates.tree(u), *args)
        return out if has_aux else (out, None)

    def run(
        objective_: Callable[..., Any],
        u: PyTree,
        differentiable: tuple[Any, ...],
        settings: tuple[dict[str, Any], MinimizeState | None],
    ) -> MinimizeState:
        def bound(v: PyTree) -> tuple[jax.Array, PyTree]:
            return objective_(v, *differentiable)

        shared = share_constants(bound, u)
        given, earlier = settings
        limits_ = Limits(**dict(fixed_limits), **given)
        if earlier is None:
            begin = minimize_state.initial_state(shared, method, u)
        elif new_objective:
            begin = minimize_state.onto_new_objective(shared, method, earlier)
        else:
            begin = minimize_state.resume(limits_, earlier)
        return minimize_loop.run(shared, method, limits_, begin, callback)

    u0 = coordinates.of(x0)
    # What `fun` closes over has derivatives, too: it becomes further arguments.
    hoisted, closed_over = jax.closure_convert(objective, u0, *args)
    end = solve_implicitly(run, hoisted, u0, (*args, *closed_over), (limits, state))
    num_values, num_gradients = end.evaluations
    return MinimizeResult(
        x=coordinates.tree(end.best_params),
        fun=end.best.value,
        grad=coordinates.tree(end.best.grad),
        aux=end.best.aux,
        status=end.status,
        success=end.status == Status.CONVERGED,
        nit=Iterations(*end.iterations).nit,
        nfev=num_values,
        ngev=num_gradients,
        state=end,
    )


def _check(
    fun: Any,
    tol: Any,
    tol_kind: Any,
    max_iterations: Any,
    max_evaluations: Any,
    patience: Any,
) -> None:
    validation.check_callable("fun", fun)
    validation.check_positive("tol", tol)
    validation.check_choice("tol_kind", tol_kind, TOLERANCES)
    validation.check_positive_int("max_iterations", max_iterations)
    if not isinstance(max_evaluations, jax.Array) and math.isnan(max_evaluations):
        raise ValueError("max_evaluations=nan must be a number greater than 0")
    validation.check_positive("max_evaluations", max_evaluations)
    validation.check_positive_int("patience", patience)


def _check_objective(
    fun: Callable[..., Any], x0: PyTree, args: tuple[Any, ...], has_aux: bool
) -> None:
    out = jax.eval_shape(fun, x0, *args)
    if has_aux:
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"fun returns {out}; with has_aux=True it must return a pair of a "
                "real scalar and an auxiliary tree"
            )
        out = out[0]
    shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"fun returns {out}; it must return a real floating-point scalar"
            + ("" if has_aux else " (or set has_aux=True for a pair)")
        )
