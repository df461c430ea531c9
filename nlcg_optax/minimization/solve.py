"""Minimization of a deterministic function: the whole loop, compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree
from nlcg_optax.minimization import arguments
from nlcg_optax.minimization.convergence import TolKind
from nlcg_optax.minimization.coordinates import coordinates_of
from nlcg_optax.minimization.implicit import solve_implicitly, tangents_of
from nlcg_optax.minimization.methods import Method, get_method
from nlcg_optax.minimization.problem import Problem, pose
from nlcg_optax.minimization.program import (
    Program,
    Setup,
    program_for,
)
from nlcg_optax.minimization.result import MinimizeResult
from nlcg_optax.minimization.state import MinimizeState
from nlcg_optax.minimization.tracing import Same
from nlcg_optax.xla.automatic_sharding import on_mesh_of
from nlcg_optax.xla.varying import varying_with


def minimize(
    fun: Callable[..., Any],
    x0: PyTree,
    args: Any = (),
    *,
    has_aux: bool = False,
    method: str | Method | optax.GradientTransformation = "limited-memory",
    tol: float | jax.Array | None = None,
    tol_kind: TolKind = "decrease",
    max_iterations: int | jax.Array = 10_000,
    max_evaluations: float | jax.Array = 10_000,
    patience: int | jax.Array = 1000,
    state: MinimizeState | None = None,
    new_objective: bool = False,
    callback: Callable[..., Any] | None = None,
    **unknown: Any,
) -> MinimizeResult:
    r"""Minimizes a smooth function of a pytree of arrays.

    It compiles one loop, with one gradient in it: a descent direction from ``method``,
    followed by the Hager-Zhang line search (`scale_by_hager_zhang_linesearch`). By
    default it has converged when the next steps promise next to nothing,

    .. math:: \tfrac12 t |\varphi'(0)| \le \max(\mathrm{tol}^2, \epsilon/100)\,
        \min(|f|,\; f(x_0) - f),

    with the slope :math:`\varphi'(0)` along the next direction, the length t of its
    first step and the unit of rounding :math:`\epsilon` (`promises_little` in
    `nlcg_optax.minimization.convergence` has the details). Scaling f or x, or shifting
    x, does not change that; shifting f changes only how many digits of a minimum near
    zero are asked for. With the other kinds of ``tol_kind`` it has converged
    when

    .. math:: \max_i |g_i| \le \mathrm{tol} \cdot
        \{1 + |f|, \; 1, \; \max_i |g_i(x_0)|\}

    for ``"value"``, ``"absolute"`` and ``"relative"``; for ``"value"`` the size of f
    counts only after a decrease. With every kind it also ends with success if what is
    left to gain is below the rounding of the precision, once neither the objective nor
    its gradient has become smaller for 10 iterations (40 with the other kinds) and for
    an eighth of all iterations, or once two searches in a row have failed.
    ``result.message`` then says "converged to rounding". Before it ends in success
    (with the other kinds only before "converged to rounding"), and if the gradient is
    large enough to hide a descent, it searches again (`second_look`), since parameters
    of very different sizes hide a descent from each other: with at most 8192 numbers in
    units that the gradient at x0 gives, then in their own sizes; in each along the
    steepest descent, then along it without its part normal to a steep wall.

    ``fun`` is traced at every call, so that whatever it reads is read anew. The arrays
    and numbers it closes over become arguments of the compiled program: the same
    function with other data, or a new closure, compiles nothing. Python numbers inside
    ``scan``, ``while_loop``, ``cond``, ``checkpoint`` or a function with custom
    derivatives are part of the program: to change them without compiling, make them
    arrays.

    It works under ``jit`` and ``vmap``. The results ``x``, ``fun`` and ``aux`` have
    derivatives with respect to everything that ``fun`` depends on, ``args`` and
    closed-over arrays: by the implicit function theorem,
    :math:`\nabla^2 f\, dx = -d\nabla f`, solved by conjugate gradients on
    Hessian-vector products, and :math:`df = \partial_a f\, da`. The derivatives are
    those of an exact stationary point with a positive definite Hessian, and NaN if the
    run had no success or the conjugate gradients do not converge. The other results
    have none.

    Internally the arrays are real, and those of a small tree are one vector, which
    compiles and runs faster (at most 8192 numbers of one dtype, with a method for which
    `Method.may_be_vector` is true, as for every name). Outside of ``jit`` the run
    returns to Python several times a second, so that Ctrl-C ends it.

    Args:
      fun: ``fun(x, *args)``, a real scalar, or a pair of it and an auxiliary tree. Any
        callable: a closure, a bound method, a module with arrays.
      x0: where to begin: a tree of real or complex floating-point arrays; a number, or
        a list or tuple of numbers, is cast to an array.
      args: further arguments of ``fun``; anything but a tuple is a single argument.
        They may also hold functions, strings and Python numbers, which count as closed
        over: ``range(n)`` and ``if`` work with them.
      has_aux: whether ``fun`` returns that pair.
      method: a name from `nlcg_optax.minimization.methods.names`, that is
        ``"limited-memory"`` (31 secant pairs, fewer for up to three parameters: an
        L-BFGS direction, which is NLCG in their metric with β = 0) or a conjugacy rule
        such as ``"hs+"`` or ``"hz"`` for two-term NLCG; a `Method`; or a transformation
        whose updates are -d.
      tol: tolerance, positive; None for 1e-6. With the default kind it is about the
        accuracy of x relative to its distance from x0, and in float32 as much as the
        precision allows.
      tol_kind: what the tolerance is relative to.
      max_iterations: limit on iterations.
      max_evaluations: limit on the work: a value with its gradient counts one, a
        value alone a third.
      patience: iterations without a smaller objective or a halved gradient after which
        the run ends.
      state: ``result.state`` of an earlier call with the same ``method`` and shapes, to
        resume where that call ended, under new limits; the counters continue. ``x0``
        then only gives the shapes.
      new_objective: whether ``fun`` or ``args`` differ from those of the call that
        returned ``state``, as along a path of problems (continuation). The point is
        then measured anew and the counters begin at zero; the secant pairs or the
        previous direction are kept.
      callback: called on the host at the start and after each iteration with a
        `nlcg_optax.minimization.state.Progress`. A parameter named ``x`` or ``xk`` gets
        the point, too, and ``intermediate_result`` is a progress with the point as its
        ``x``. The run ends when it returns True or raises ``StopIteration``. Under
        ``vmap`` or ``jit`` it is part of the program: define it once, as each new one
        is compiled and kept.
      **unknown: raise an error that names the argument to use.

    Returns:
      A `MinimizeResult`. The best point is kept: ``fun`` is never above f(x0).

    Raises:
      TypeError: if ``fun`` does not return a real floating-point scalar, ``x0`` has
        a leaf that is not floating point, or an argument is unknown.
      ValueError: if an argument is out of its range, ``state`` does not fit, or
        ``new_objective`` is given without a ``state``.

    Examples:
      >>> import jax.numpy as jnp
      >>> def rosenbrock(x, scale):
      ...     return jnp.sum((1 - x[:-1])**2 + scale * (x[1:] - x[:-1]**2)**2)
      >>> result = minimize(rosenbrock, jnp.array([-1.2, 1.]), args=(100.,))
      >>> bool(result.success), result.message
      (True, 'converged: the tolerance is met')
      >>> bool(jnp.max(jnp.abs(result.x - 1.)) < 1e-2)
      True
    """
    arguments.check_unknown(unknown)
    validation.check_callable("fun", fun)
    limits = arguments.check_limits(
        tol, tol_kind, max_iterations, max_evaluations, patience
    )
    if new_objective and state is None:
        raise ValueError(
            "new_objective=True needs a state, of an earlier call; got None"
        )
    chosen = get_method(method)
    setup = Setup(
        chosen,
        tol_kind,
        _begins(state, new_objective),
        arguments.wants_point(callback),
    )
    start = arguments.as_start(x0)
    with on_mesh_of(start):
        coordinates = coordinates_of(start, may_be_vector=chosen.may_be_vector)
        given = arguments.as_args(args)
        u0 = coordinates.of(start)
        problem = pose(fun, given, has_aux, coordinates, u0)
        varying_u0 = varying_with(u0, problem.inputs)
        if varying_u0 is not u0:  # in `shard_map`, where data differ between devices
            u0 = varying_u0
            problem = pose(fun, given, has_aux, coordinates, u0)
        text = _shapes_of(start)
        program = program_for(problem, setup, text)
        if state is not None:
            _check_state(program, problem, state, u0, text)
        return _solve(problem, program, u0, limits, state, callback)


def _solve(
    problem: Problem,
    program: Program,
    u0: PyTree,
    limits: dict[str, Any],
    state: MinimizeState | None,
    callback: Callable[..., Any] | None,
) -> MinimizeResult:
    """Solves it as a separate program or, if something is traced, within another."""
    # JAX keeps `tangents` for longer than the trace that the inputs may belong to.
    lean = problem.without_inputs()

    def run(u: PyTree, inputs: Any, settings: Any) -> MinimizeResult:
        if _is_traced((u, inputs, settings)):
            # Callbacks may be unhashable, or equal to one another.
            called = None if callback is None else Same(callback)
            return program.whole(called, u, inputs, *settings)
        given, earlier = settings
        return program.solve(u, inputs, given, earlier, callback)

    def tangents(x: PyTree, inputs: Any, inputs_dot: Any, success: jax.Array) -> Any:
        if lean.value.has_custom_rules:
            return tangents_of(lean, x, inputs, inputs_dot, success)
        return program.tangents(x, inputs, inputs_dot, success)

    return solve_implicitly(run, tangents, u0, problem.inputs, (limits, state))


def _is_traced(tree: PyTree) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _begins(state: Any, new_objective: bool) -> str:
    if state is None:
        return "new"
    if not isinstance(state, MinimizeState):
        what = type(state).__name__
        hint = "; pass its .state" if isinstance(state, MinimizeResult) else ""
        raise TypeError(
            f"state= is a {what}; allowed is the `state` of an earlier result{hint}"
        )
    return "onto a new objective" if new_objective else "resumed"


def _shapes_of(tree: PyTree) -> str:
    """Dtypes and shapes by the paths of the leaves: a container may have no text."""
    texts = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        shape = f"{x.dtype}{list(x.shape)}"
        if not path:  # an array alone
            return shape
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        texts.append(f"{name}: {shape}")
    return "{" + ", ".join(texts) + "}"


def _check_state(
    program: Program,
    problem: Problem,
    state: MinimizeState,
    u0: PyTree,
    text: str,
) -> None:
    """Raises ValueError if a state belongs to another tree, method or objective."""
    batch = jnp.shape(state.status)
    if batch:
        raise ValueError(
            f"state= is that of a batch of runs, of shape {list(batch)}; resume it "
            "under jax.vmap, too, such as jax.vmap(lambda x, s: minimize(fun, x, "
            "state=s))(x0, result.state)"
        )
    if state.layout.text != text:
        raise ValueError(
            f"state= is of parameters with the shapes {state.layout.text}, but x0 has "
            f"the shapes {text}"
        )
    fresh = jax.eval_shape(program.begin_anew, u0, problem.inputs)
    for name in ("direction_state", "current"):
        if not _are_alike(getattr(state, name), getattr(fresh, name)):
            raise ValueError(
                f"state= was made with another `method` or dtype: its {name} has the "
                f"shapes {_shapes_of(getattr(state, name))}, but needed are "
                f"{_shapes_of(getattr(fresh, name))}"
            )
    if program.resumes and not _are_alike(state, fresh):
        given, needed = _shapes_of(state.best.aux), _shapes_of(fresh.best.aux)
        raise ValueError(
            "state= is of an objective with another auxiliary output: it has the "
            f"shapes {given}, but needed are {needed}"
        )


def _are_alike(x: PyTree, y: PyTree) -> bool:
    structures: list[Any] = [jax.tree.structure(x), jax.tree.structure(y)]
    if structures[0] != structures[1]:
        return False
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
