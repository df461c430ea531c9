"""The result of a minimization as a function with derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nlcg_optax.dtypes import PyTree, power_of_two
from nlcg_optax.minimization.problem import Problem, value_and_aux
from nlcg_optax.minimization.result import MinimizeResult
from nlcg_optax.trees.inner_products import max_abs, vdots
from nlcg_optax.xla.varying import while_loop

# The conjugate gradients that solve with the Hessian end at this residual relative to
# the right side, or at this many units of its rounding: along directions without
# curvature they would magnify what is left, which is rounding, without bound.
TOLERANCE, ROUNDINGS = 1e-10, 10
# Limit on their iterations, each with one product. In float64, 100 parameters with a
# condition number of 1e8 need 5000.
MOST_PRODUCTS = 10_000

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
      The result. Its ``x``, ``fun`` and ``aux`` have derivatives; those of all other
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


def _solve_implicitly_jvp(
    run: Run,
    tangents: Tangents,
    primals: tuple[PyTree, Any, PyTree],
    primals_dot: tuple[PyTree, Any, PyTree],
) -> tuple[MinimizeResult, MinimizeResult]:
    (u0, inputs, settings), (u0_dot, inputs_dot, _) = primals, primals_dot
    end = solve_implicitly(run, tangents, u0, inputs, settings)
    # No tangents of constants: not every function is differentiable in them.
    inputs_dot = jax.tree.map(_known_tangent, inputs_dot, is_leaf=_is_zero)
    x_dot, fun_dot, aux_dot = tangents(end.x, inputs, inputs_dot, end.success)
    # A minimizer does not depend on where the run began; any other point does.
    lost = jnp.where(end.success, 0, jnp.nan)
    u0_dot = [
        _known_tangent(leaf) for leaf in jax.tree.leaves(u0_dot, is_leaf=_is_zero)
    ]
    begun = sum(jnp.sum(lost * leaf) for leaf in u0_dot if leaf is not None)

    def with_start(tangent: Any) -> Any:
        if tangent.dtype == jax.dtypes.float0:
            return tangent
        return tangent + jnp.asarray(begun).astype(tangent.dtype)

    zero = jax.tree.map(
        lambda x: jax.custom_derivatives.zero_from_primal(x, symbolic_zeros=True), end
    )
    x_dot, aux_dot = jax.tree.map(with_start, (x_dot, aux_dot))
    fun_dot = with_start(fun_dot).astype(end.fun.dtype)
    return end, zero._replace(x=x_dot, fun=fun_dot, aux=aux_dot)


solve_implicitly.defjvp(_solve_implicitly_jvp, symbolic_zeros=True)


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)


def _known_tangent(leaf: Any) -> Any:
    if _is_zero(leaf) or getattr(leaf, "dtype", None) == jax.dtypes.float0:
        return None
    return jnp.asarray(leaf)  # also for a Python number


def tangents_of(
    problem: Problem, x: PyTree, inputs: Any, inputs_dot: Any, success: jax.Array
) -> tuple[PyTree, jax.Array, PyTree]:
    r"""Derivatives of a minimizer, and of the objective and auxiliary output there.

    .. math:: \nabla^2_{xx} f\; \dot x = -\nabla^2_{xa} f\; \dot a, \qquad
        \dot f = \partial_a f\, \dot a, \qquad
        \dot h = \partial_x h\, \dot x + \partial_a h\, \dot a.

    The first is the implicit function theorem, the second the envelope theorem.

    Args:
      problem: the problem, with the functions of the caller.
      x: the minimizer, in the coordinates or as the tree of parameters.
      inputs: as `Problem.inputs`.
      inputs_dot: their tangents, None for constants.
      success: whether x is a minimizer; otherwise all derivatives are NaN.

    Returns:
      Tangents of the parameters, of the objective and of the auxiliary tree.
    """
    u = problem.coordinates.of(x)
    moving, moving_dot, with_moving = _split(inputs, inputs_dot)

    def gradient(v: PyTree, given: Any) -> PyTree:
        return jax.grad(lambda w: value_and_aux(problem, w, given)[0])(v)

    def hessian(v: PyTree) -> PyTree:
        def at(w: PyTree) -> PyTree:
            return gradient(w, inputs)

        if problem.value.has_custom_rules:
            # The Hessian is symmetric, and custom rules may have no forward derivative.
            return jax.vjp(at, u)[1](v)[0]
        return jax.jvp(at, (u,), (v,))[1]

    _, right = jax.jvp(
        lambda given: gradient(u, with_moving(given)), (moving,), (moving_dot,)
    )

    def valid(tangent: Any) -> Any:
        if tangent.dtype == jax.dtypes.float0:
            return tangent
        # A product is linear: reverse mode would lose the NaN of a selection.
        return tangent * jnp.where(success, 1, jnp.nan).astype(tangent.dtype)

    # Before and after the solver, which ends at once for NaN: reverse mode begins at
    # the other end.
    minus = jax.tree.map(lambda x: valid(-x), right)
    u_dot = jax.lax.custom_linear_solve(
        hessian, minus, _conjugate_gradients, symmetric=True
    )

    def outputs(v: PyTree, given: list[Any]) -> Any:
        return value_and_aux(problem, v, with_moving(given))

    _, (value_dot, _) = jax.jvp(functools.partial(outputs, u), (moving,), (moving_dot,))
    _, (_, aux_dot) = jax.jvp(outputs, (u, moving), (u_dot, moving_dot))

    x_dot = jax.tree.map(valid, problem.coordinates.tree(u_dot))
    return x_dot, valid(value_dot), jax.tree.map(valid, aux_dot)


def _split(
    inputs: Any, inputs_dot: Any
) -> tuple[list[Any], list[Any], Callable[[list[Any]], Any]]:
    """The inputs with tangents, their tangents, and a function that replaces them."""
    leaves, structure = jax.tree.flatten(inputs)
    dots = jax.tree.leaves(inputs_dot, is_leaf=lambda leaf: leaf is None)
    where = [number for number, dot in enumerate(dots) if dot is not None]

    def with_moving(given: list[Any]) -> Any:
        new = list(leaves)
        for number, leaf in zip(where, given, strict=True):
            new[number] = leaf
        return jax.tree.unflatten(structure, new)

    moving, moving_dot = ([x[number] for number in where] for x in (leaves, dots))
    return moving, moving_dot, with_moving


def _conjugate_gradients(matvec: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
    """Solves ``matvec(x) = b``, with inner products that work with any sharding.

    Those of `jax.scipy.sparse.linalg.cg` refuse arrays on an explicit mesh. ``b`` and
    the first product are scaled, because their squares might over- or underflow; the
    factors are powers of two, so that nothing is rounded. The solution is NaN if ``b``
    is not finite, or if the residual is at last larger than ``b``.
    """

    def norm(x: PyTree) -> jax.Array:
        return vdots([(x, x)])[0]

    def plus(x: PyTree, factor: jax.Array, y: PyTree) -> PyTree:
        return jax.tree.map(lambda x, y: x + factor.astype(x.dtype) * y, x, y)

    def size(x: PyTree) -> jax.Array:
        power = power_of_two(max_abs(x))
        return jnp.where((power > 0) & jnp.isfinite(power), power, 1)

    def over(x: PyTree, unit: jax.Array) -> PyTree:
        return jax.tree.map(lambda x: x / unit.astype(x.dtype), x)

    unit = size(b)
    b = over(b, unit)
    start = norm(b)
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(b))
    tolerance = max(TOLERANCE, ROUNDINGS * eps)

    def continues(carry: Any) -> jax.Array:
        _, _, _, square, _, count = carry
        # A residual grows by at most the root of the condition number, unless some
        # direction has no curvature.
        within = (square > tolerance**2 * start) & (square * eps < start)
        return within & (count < MOST_PRODUCTS)

    def step(carry: Any) -> Any:
        x, residual, direction, square, scale, count = carry
        product = matvec(direction)
        scale = jnp.where(count == 0, size(product), scale)
        product = over(product, scale)
        length = square / vdots([(direction, product)])[0]
        x, residual = plus(x, length, direction), plus(residual, -length, product)
        new_square = norm(residual)
        direction = plus(residual, new_square / square, direction)
        return x, residual, direction, new_square, scale, count + 1

    zero = jax.tree.map(jnp.zeros_like, b)
    begin = (zero, b, b, start, jnp.ones_like(unit), 0)
    x, _, _, square, scale, _ = while_loop(continues, step, begin)
    # A right side that is not finite ends the loop at once, at zero.
    is_solved = jnp.isfinite(start) & (square <= start)
    return over(x, jnp.where(is_solved, scale / unit, jnp.nan))
