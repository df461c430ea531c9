"""What `minimize` returns, and how it says why it ended."""

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


MESSAGES: dict[Status, str] = {
    Status.CONVERGED: "the gradient is as small as tol asks",
    Status.RUNNING: "still running",
    Status.MAX_ITERATIONS: "max_iterations reached before the gradient was small",
    Status.MAX_EVALUATIONS: "max_evaluations reached before the gradient was small",
    Status.NO_PROGRESS: (
        "no lower point found along the negative gradient: rounding hides the "
        "decrease, or the gradient does not belong to the objective"
    ),
    Status.STAGNATION: (
        "neither the objective nor its gradient has got smaller for `patience` "
        "iterations: rounding hides the decrease"
    ),
    Status.NON_FINITE_START: (
        "the objective or its gradient is not finite at x0; nothing was done"
    ),
    Status.UNBOUNDED_BELOW: "the objective fell below -1e30: it seems unbounded below",
}


class MinimizeResult(NamedTuple):
    """The result of `minimize`, named like SciPy's.

    Attributes:
      x: the best point, like ``x0``.
      fun: the objective there, a scalar.
      grad: its gradient there (for complex parameters the direction of steepest
        ascent, the conjugate of what ``jax.grad`` gives).
      aux: the auxiliary output there, or None.
      status: a `Status` as an int32 scalar.
      success: whether ``status`` is ``Status.CONVERGED``.
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
    def message(self) -> str | list[str]:
        """Why it ended, in words; a list for a batch. Not inside ``jit``."""
        status = np.asarray(self.status)
        if status.ndim == 0:
            return MESSAGES[Status(int(status))]
        return [MESSAGES[Status(int(s))] for s in status.ravel()]
