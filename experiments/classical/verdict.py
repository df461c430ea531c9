"""Whether a point found in float32 is a solution, as judged by the float64 problem.

No tolerance on the gradient fits every problem in float32: some gradients cannot get
below 1e-6 (1 + |f|), others fall below it far from a minimum. So a point is a solution
if the same problem in float64 descends from it by no more than a hundred roundings of
the float32 objective.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

EPS = float(np.finfo(np.float32).eps)
ROUNDINGS = 100.0  # of f in float32, by which float64 may descend from a solution
NEIGHBORS = 8  # points at which the rounding of f is measured
LARGEST_HESSIAN = 64  # parameters up to which the Hessian is formed
MOST_STEPS = 500  # of the descent in float64
IDLE_STEPS = 25  # steps without a lower value after which it ends
RADIUS = 1e-3  # first trust radius, relative to 1 + |x|: to the nearest basin

Objective = Callable[[Any], Any]


class Verdict(NamedTuple):
    """What the float64 problem says about a float32 run.

    Attributes:
      value: the float64 objective at the point.
      grad_max: largest absolute entry of its gradient there.
      left: the decrease from there to the stationary point.
      rounding: the rounding of the float32 objective.
      work: gradient-equivalents at the first point within `ROUNDINGS` of the
        stationary value, if there is one, else those of the last point.
      solved: whether the point is a solution.
    """

    value: float
    grad_max: float
    left: float
    rounding: float
    work: float
    solved: bool


class Judge:
    """The float64 problem of one objective; its functions are compiled once."""

    def __init__(self, objective: Objective) -> None:
        self._single = jax.jit(objective)
        self._value = jax.jit(objective)
        self._value_and_grad = jax.jit(jax.value_and_grad(objective))
        self._hessian = jax.jit(jax.hessian(objective))
        self._product = jax.jit(
            lambda x, v: jax.jvp(jax.grad(objective), (x,), (v,))[1]
        )

    def value(self, x: np.ndarray) -> float:
        """The float64 objective."""
        with jax.enable_x64(True):
            return float(self._value(np.asarray(x, np.float64)))

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """The float64 objective and its gradient."""
        with jax.enable_x64(True):
            value, grad = self._value_and_grad(np.asarray(x, np.float64))
            return float(value), np.asarray(grad, np.float64)

    def rounding(self, x: np.ndarray) -> float:
        """The rounding of the float32 objective near a float32 point.

        The largest difference between the float32 value at the point or at a neighbor,
        whose coordinates are moved by at most one unit in the last place, and the
        float64 value at the point; at least one rounding of f itself.
        """
        rng, x = np.random.default_rng(0), np.asarray(x, np.float32)
        exact = self.value(x)
        points = [x]
        for _ in range(NEIGHBORS):
            toward = np.inf * rng.choice([-1.0, 1.0], x.shape)
            moved = np.nextafter(x, toward.astype(np.float32))
            points.append(np.where(rng.integers(2, size=x.shape), moved, x))
        with jax.enable_x64(False):
            gaps = [abs(float(self._single(point)) - exact) for point in points]
        return max([EPS * abs(exact), *filter(math.isfinite, gaps)])

    def descend(self, x: np.ndarray) -> float:
        """The least value on the way down from a point, by a trust region.

        SciPy's trust-exact with a formed Hessian for few numbers, trust-ncg for many.
        """
        low, idle = math.inf, 0

        def fun(v: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal low, idle
            value, grad = self.value_and_grad(v)
            idle = 0 if value < low else idle + 1
            low = min(low, value) if math.isfinite(value) else low
            return value, grad

        def callback(intermediate_result: Any) -> None:
            del intermediate_result
            if idle > IDLE_STEPS:
                raise StopIteration

        start = np.asarray(x, np.float64)
        radius = RADIUS * (1 + float(np.linalg.norm(start)))
        options = {
            "initial_trust_radius": radius,
            "max_trust_radius": 1e6 * radius,
            "gtol": 0.0,
            "maxiter": MOST_STEPS,
        }
        small = start.size <= LARGEST_HESSIAN
        curvature: Any = {"hess": self._hess} if small else {"hessp": self._hessp}
        # A Hessian that is not finite ends it: what was found so far counts.
        with contextlib.suppress(ValueError, np.linalg.LinAlgError):
            scipy.optimize.minimize(
                fun,
                start,
                jac=True,
                method="trust-exact" if small else "trust-ncg",
                callback=callback,
                options=options,
                **curvature,
            )
        return low

    def _hess(self, x: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(self._hessian(np.asarray(x, np.float64)))

    def _hessp(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(
                self._product(np.asarray(x, np.float64), jnp.asarray(v, jnp.float64))
            )


def judge(
    problem: Judge, path: Sequence[tuple[float, np.ndarray]], start_value: float
) -> Verdict:
    """Judges a run by the points lower than all before.

    Args:
      problem: the float64 problem.
      path: the work at each of the points, and the point; the last is the result.
      start_value: the objective at the start.

    Returns:
      The verdict.
    """
    work, x = path[-1]
    value, grad = problem.value_and_grad(x)
    least = problem.descend(x)
    # The last part is the squared rounding of the terms whose squares add up to f:
    # where they vanish, nothing else shows the scale of f.
    rounding = max(problem.rounding(x), EPS * EPS * (start_value - least))
    ceiling = least + ROUNDINGS * rounding
    solved = math.isfinite(least) and value <= min(ceiling, start_value + rounding)
    if solved:
        low, high = 0, len(path) - 1  # float64 values fall, except for rounding
        while low < high:
            middle = (low + high) // 2
            if problem.value(path[middle][1]) <= ceiling:
                high = middle
            else:
                low = middle + 1
        work = path[high][0]
    grad_max = float(np.max(np.abs(grad)))
    return Verdict(value, grad_max, value - least, rounding, work, bool(solved))
