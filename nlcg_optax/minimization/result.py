"""What `minimize` returns, and how it says why it ended."""

import collections
import enum
from typing import Any, NamedTuple

import jax
import numpy as np

from nlcg_optax.dtypes import PyTree


class Status(enum.IntEnum):
    """Why `minimize` ended."""

    CONVERGED = 0
    RUNNING = 1
    MAX_ITERATIONS = 2
    MAX_EVALUATIONS = 3
    NO_PROGRESS = 4
    STAGNATION = 5
    NON_FINITE_START = 6
    UNBOUNDED_BELOW = 7
    CONVERGED_TO_ROUNDING = 8
    STOPPED = 9
    OTHER_OBJECTIVE = 10


SUCCESSES = (Status.CONVERGED, Status.CONVERGED_TO_ROUNDING)
MESSAGES: dict[Status, str] = {
    Status.CONVERGED: "converged: the tolerance is met",
    Status.RUNNING: "still running",
    Status.MAX_ITERATIONS: (
        "not converged: max_iterations reached; pass state=result.state and a larger "
        "max_iterations to continue"
    ),
    Status.MAX_EVALUATIONS: (
        "not converged: max_evaluations reached; pass state=result.state and a larger "
        "max_evaluations to continue"
    ),
    Status.NO_PROGRESS: (
        "not converged: no lower point found along the negative gradient; check that "
        "fun is smooth and its gradient right, or use float64 (jax_enable_x64)"
    ),
    Status.STAGNATION: (
        "not converged: neither the objective nor its gradient got smaller for "
        "`patience` iterations; check that fun is smooth, or use float64 "
        "(jax_enable_x64)"
    ),
    Status.NON_FINITE_START: (
        "not started: the objective or its gradient is not finite at x0 (overflow, or "
        "outside of the domain); choose another x0, or use float64 (jax_enable_x64)"
    ),
    Status.UNBOUNDED_BELOW: (
        "not converged: the objective fell without limit and seems unbounded below; "
        "check its sign and its domain"
    ),
    Status.CONVERGED_TO_ROUNDING: (
        "converged to rounding: neither the objective nor its gradient can get smaller "
        "in this precision"
    ),
    Status.STOPPED: (
        "not converged: the callback ended the run; pass state=result.state to continue"
    ),
    Status.OTHER_OBJECTIVE: (
        "not started: fun differs from the value that `state` holds for its point; if "
        "fun or args have changed, pass new_objective=True"
    ),
}


# Message of `Status.CONVERGED` without an iteration, at a gradient of zero.
ZERO_AT_START = (
    "converged: the gradient is zero at the start, which is stationary (or fun "
    "underflows there, or does not depend on x)"
)

# Fields that only SciPy's results have.
ABSENT = {
    "hess_inv": (
        "no inverse Hessian is kept; where it is needed invert "
        "jax.hessian(fun)(result.x), for products use nlcg_optax.hessian_vector_product"
    ),
    "nhev": "no Hessian is measured",
    "hess": "no Hessian is measured; take jax.hessian(fun)(result.x)",
}
WIDEST = 70  # characters of a value in the printed result


class MinimizeResult(NamedTuple):
    """The result of `minimize`, named like SciPy's; ``result["x"]`` works, too.

    Attributes:
      x: the best point, like ``x0``.
      fun: the objective there, a scalar.
      grad: its gradient there (for complex parameters the direction of steepest
        ascent, the conjugate of what ``jax.grad`` gives).
      aux: the auxiliary output there, or None.
      status: a `Status` as an int32 scalar.
      success: whether ``status`` is ``Status.CONVERGED`` or
        ``Status.CONVERGED_TO_ROUNDING``.
      nit: iterations, that is, line searches that moved.
      nfev: values that were measured without a gradient.
      ngev: values that were measured together with a gradient.
      state: the state of the iteration, for `minimize(..., state=...)`.
    """

    x: PyTree
    fun: jax.Array
    grad: PyTree
    aux: PyTree
    status: jax.Array
    success: jax.Array
    nit: jax.Array
    nfev: jax.Array
    ngev: jax.Array
    state: Any

    @property
    def evaluations(self) -> jax.Array:
        """Work in gradients: ``ngev + nfev / 3``."""
        thirds = self.nfev / 3
        return self.ngev.astype(thirds.dtype) + thirds

    @property
    def jac(self) -> PyTree:
        """``grad`` by SciPy's name."""
        return self.grad

    @property
    def njev(self) -> jax.Array:
        """``ngev`` by SciPy's name."""
        return self.ngev

    @property
    def message(self) -> str | list[str]:
        """Why it ended, in words; a list for a batch. Not inside ``jit``."""
        status = np.asarray(self.status)
        messages = [MESSAGES[Status(int(code))] for code in status.ravel()]
        for i in np.flatnonzero((status == Status.CONVERGED) & (self.nit == 0)):
            if not any(np.any(g[i]) for g in self._gradients(status.size)):
                messages[i] = ZERO_AT_START
        return messages if status.ndim else messages[0]

    def _gradients(self, count: int) -> list[np.ndarray]:
        """The leaves of the gradients, with one row per problem of a batch."""
        return [np.asarray(g).reshape(count, -1) for g in jax.tree.leaves(self.grad)]

    def keys(self) -> tuple[str, ...]:
        """The names that ``result[name]`` takes."""
        return ("message", *self._fields, "jac", "njev")

    def values(self) -> tuple[Any, ...]:
        """What ``result[name]`` gives for each of the names."""
        return tuple(self[name] for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """The names with their values."""
        return tuple(zip(self.keys(), self.values(), strict=True))

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str):
            return key in self.keys()
        return tuple.__contains__(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """``result[key]`` if there is such a name, else ``default``."""
        return self[key] if key in self.keys() else default

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        if key in ABSENT:
            raise KeyError(f"{key!r}: {ABSENT[key]}")
        if key not in self.keys():
            raise KeyError(f"{key!r}; there are {', '.join(self.keys())}")
        return getattr(self, key)

    def __getattr__(self, name: str) -> Any:
        # Called only for names that do not exist.
        if name in ABSENT:
            raise AttributeError(f"result.{name}: {ABSENT[name]}")
        raise AttributeError(
            f"a MinimizeResult has no {name!r}; there are {', '.join(self.keys())}"
        )

    def __repr__(self) -> str:
        lines = {"message": self._message_line()}
        for name in ("success", "status", "fun", "x", "grad", "aux"):
            value = getattr(self, name)
            if value is not None:
                lines[name] = _in_a_line(value)
        for name in ("nit", "nfev", "ngev"):
            lines[name] = _in_a_line(getattr(self, name))
        return "\n".join(f"{name:>9}: {line}" for name, line in lines.items())

    def _message_line(self) -> str:
        if isinstance(self.status, jax.core.Tracer):
            return "traced, not yet computed"
        message = self.message
        if isinstance(message, str):
            return message
        counts = collections.Counter(message)
        return "; ".join(
            f"{count} of {len(message)} {m}" for m, count in counts.items()
        )


def _in_a_line(tree: PyTree) -> str:
    """The first characters of a tree."""
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.core.Tracer):
            text = str(leaf.aval)
        else:
            text = np.array2string(
                np.asarray(leaf), precision=6, threshold=8, edgeitems=3
            )
        name = jax.tree_util.keystr(path)
        parts.append(f"{name}: {text}" if name else text)
        if sum(map(len, parts)) > WIDEST:
            break
    line = " ".join(", ".join(parts).split())
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 4]} ..."
