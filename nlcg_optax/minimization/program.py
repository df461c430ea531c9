"""Compiled programs of `minimize`, cached by what they compute."""

import collections
import functools
import itertools
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import io_callback

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, compute_dtype
from nlcg_optax.minimization import loop
from nlcg_optax.minimization import state as states
from nlcg_optax.minimization.arguments import host_callback
from nlcg_optax.minimization.convergence import Limits, TolKind
from nlcg_optax.minimization.implicit import tangents_of
from nlcg_optax.minimization.iteration import Callback
from nlcg_optax.minimization.methods import Method
from nlcg_optax.minimization.problem import Problem, objective_from
from nlcg_optax.minimization.result import SUCCESSES, MinimizeResult, Status
from nlcg_optax.minimization.state import Iterations, MinimizeState, Objective
from nlcg_optax.minimization.tracing import Same
from nlcg_optax.xla.compiler_options import compiler_options
from nlcg_optax.xla.shared_constants import share_constants

_programs: collections.OrderedDict[Hashable, "Program"] = collections.OrderedDict()
_programs_lock = threading.Lock()
_tickets = itertools.count()  # one per run with a callback

MOST_PROGRAMS = 256  # programs kept; the least recently used is dropped first
FIRST_TURNS = 16  # turns of a small problem's loop before it returns to Python
MOST_SECONDS = 0.2  # between two returns to Python
MOST_GROWTH = 8  # of the number of turns from one return to the next


class Setup(NamedTuple):
    """All that a program depends on besides the objective; hashable.

    Attributes:
      method: direction and line search.
      tol_kind: what the tolerance is relative to.
      begins: ``"new"``, ``"resumed"`` or ``"onto a new objective"``.
      wants_point: whether the callback asks for the point.
    """

    method: Method
    tol_kind: TolKind
    begins: str
    wants_point: bool


class Program:
    """The compiled parts of a minimization.

    Attributes:
      begin: jitted, ``begin(u, inputs, limits, state)``, the state to run from.
      run: jitted, ``run(state, inputs, limits, max_turns, ticket)``, the result;
        ``ticket`` is that of the callback, or None.
      whole: jitted, ``whole(callback, u, inputs, limits, state)``, the result, for use
        inside of other programs.
      tangents: jitted, the derivatives of the result; see `tangents_of`.
    """

    def __init__(self, problem: Problem, setup: Setup, text: str) -> None:
        self._problem = problem
        self._setup = setup
        self._layout = states.Layout(text)
        # The callback of each run, by its ticket: no program depends on it.
        self._callbacks: dict[int, Callable[[Any, Any], Any]] = {}
        is_large = not problem.coordinates.is_vector
        options = compiler_options(is_small=problem.is_small)
        self.begin = jax.jit(self._begin, compiler_options=options)
        self.run = jax.jit(
            self._run,
            donate_argnums=(0,) if is_large else (),
            compiler_options=options,
        )
        self.whole = jax.jit(self._whole, static_argnums=0)
        self.tangents = jax.jit(self._tangents)
        self.must_copy = is_large
        self._first_turns = FIRST_TURNS if problem.is_small else 1

    @property
    def resumes(self) -> bool:
        """Whether it begins with the state of an earlier run of the same objective."""
        return self._setup.begins == "resumed"

    def begin_anew(self, u: PyTree, inputs: Any) -> MinimizeState:
        """The state of a run that begins at ``u``."""
        objective = objective_from(self._problem, inputs)
        return states.initial_state(objective, self._setup.method, u, self._layout)

    def solve(
        self,
        u: PyTree,
        inputs: Any,
        limits: dict[str, Any],
        state: MinimizeState | None,
        callback: Callable[..., Any] | None,
    ) -> MinimizeResult:
        """Runs outside of other programs, in pieces, so that Ctrl-C ends it."""
        errors: list[BaseException] = []
        # The open end of a bracket is infinite, which is not the caller's error.
        with jax.debug_infs(False):
            if callback is None:
                return self._solve(u, inputs, limits, state, errors, None)
            ticket = next(_tickets) % validation.LARGEST_INT
            self._callbacks[ticket] = host_callback(callback, errors.append)
            try:
                return self._solve(u, inputs, limits, state, errors, ticket)
            finally:
                jax.effects_barrier()
                del self._callbacks[ticket]

    def _solve(
        self,
        u: PyTree,
        inputs: Any,
        limits: Any,
        state: Any,
        errors: list[Any],
        ticket: int | None,
    ) -> MinimizeResult:
        if self.must_copy and state is not None:
            state = jax.tree.map(jnp.copy, state)  # `run` writes over its state
        state, turns = self.begin(u, inputs, limits, state), self._first_turns
        result: MinimizeResult = self.run(state, inputs, limits, turns, ticket)
        while True:
            status = int(result.status)
            if errors:
                raise errors[0]
            if status != Status.RUNNING:
                return result
            start = time.perf_counter()
            result = self.run(result.state, inputs, limits, turns, ticket)
            jax.block_until_ready(result.status)
            seconds = max(time.perf_counter() - start, 1e-6)
            growth = min(MOST_SECONDS / seconds, MOST_GROWTH)
            turns = max(int(turns * growth), 1)

    def _begin(
        self,
        u: PyTree,
        inputs: Any,
        limits: dict[str, Any],
        state: MinimizeState | None,
    ) -> MinimizeState:
        if state is None:
            return self.begin_anew(u, inputs)
        objective, method = objective_from(self._problem, inputs), self._setup.method
        if self.resumes:
            return states.resume(objective, self._limits(limits), state)
        return states.onto_new_objective(objective, method, state)

    def _run(
        self,
        state: MinimizeState,
        inputs: Any,
        limits: dict[str, Any],
        max_turns: jax.Array,
        ticket: jax.Array | None,
    ) -> MinimizeResult:
        callback = None
        if ticket is not None:
            callback = self._callback_of(
                self._call_back,
                lambda call, shape, *args: io_callback(call, shape, ticket, *args),
            )
        objective = objective_from(self._problem, inputs)
        return self._result(
            loop.run(
                objective,
                self._setup.method,
                self._limits(limits),
                state,
                callback,
                max_turns,
            )
        )

    def _whole(
        self,
        callback: Same | None,
        u: PyTree,
        inputs: Any,
        limits: dict[str, Any],
        state: MinimizeState | None,
    ) -> MinimizeResult:
        inputs = share_constants(inputs)
        objective: Objective = objective_from(self._problem, inputs)
        called = None
        if callback is not None:
            called = self._callback_of(
                host_callback(callback.value, _raise),
                functools.partial(jax.pure_callback, vmap_method="sequential"),
            )
        begin = self._begin(u, inputs, limits, state)
        return self._result(
            loop.run(objective, self._setup.method, self._limits(limits), begin, called)
        )

    def _call_back(self, ticket: Any, active: Any, progress: Any) -> Any:
        return self._callbacks[int(ticket)](active, progress)

    def _callback_of(
        self, call: Callable[..., Any], reach: Callable[..., jax.Array]
    ) -> Callback:
        if self._setup.wants_point:
            return Callback(call, reach, self._problem.coordinates.tree)
        return Callback(call, reach, lambda _: None)

    def _limits(self, limits: dict[str, Any]) -> Limits:
        return Limits(self._setup.tol_kind, **limits)

    def _result(self, end: MinimizeState) -> MinimizeResult:
        tree = self._problem.coordinates.tree

        def unscaled(g: jax.Array) -> jax.Array:
            wide = compute_dtype(g.dtype)
            return (g.astype(wide) / end.scale.astype(wide)).astype(g.dtype)

        grad = jax.tree.map(unscaled, end.best.grad)
        num_values, num_gradients = end.evaluations
        return MinimizeResult(
            x=tree(end.best_params),
            fun=end.best.value / end.scale,
            grad=tree(grad),
            aux=end.best.aux,
            status=end.status,
            success=jnp.any(jnp.stack([end.status == code for code in SUCCESSES])),
            nit=Iterations(*end.iterations).nit,
            nfev=num_values,
            ngev=num_gradients,
            state=end,
        )

    def _tangents(self, x: PyTree, inputs: Any, inputs_dot: Any, success: Any) -> Any:
        return tangents_of(self._problem, x, inputs, inputs_dot, success)


def program_for(problem: Problem, setup: Setup, text: str) -> Program:
    """The program of a problem, a new one unless an earlier problem was like it.

    Args:
      problem: the problem.
      setup: what else the program depends on.
      text: the tree of parameters, by its shapes.

    Returns:
      The program. It holds no data of the problem, except for what functions with
      custom derivatives close over within loops.
    """
    key = problem.key, setup
    with _programs_lock:
        found = _programs.get(key)
        if found is not None:
            _programs.move_to_end(key)
            return found
    made = Program(problem.without_data(), setup, text)
    with _programs_lock:
        _programs[key] = made
        while len(_programs) > MOST_PROGRAMS:
            _programs.popitem(last=False)
    return made


def _raise(error: BaseException) -> None:
    raise error
