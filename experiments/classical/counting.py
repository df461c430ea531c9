"""One counter for all solvers, which counts every evaluation, even in compiled code."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class OutOfBudget(Exception):  # noqa: N818  an event, not an error
    """Raised inside a solver when its evaluations or its time are used up."""


@dataclasses.dataclass
class Counter:
    """Evaluates one problem and counts.

    A value costs a third of a gradient, a value together with its gradient one.

    Attributes:
        objective: x -> f(x), a JAX function.
        max_work: budget in gradients.
        max_seconds: budget of processor time, which other programs do not reduce. It
            starts at the first evaluation, so that compiling a solver is not charged.
        dtype: dtype of the points, values and gradients.
        patience: gradients without a lower value after which the run ends, so that a
            solver that does not stop by itself does not use up its budget.
        keeps_path: whether to keep every point lower than all before, in `path`.
        values: values alone so far.
        gradients: gradients, with or without the value, so far.
        path: the work at each lower point, and the point.
        says_success: whether the solver reports convergence; None if it was set to run
            as long as it can.
    """

    objective: Callable[[jax.Array], jax.Array]
    max_work: float
    max_seconds: float
    dimension: int = 0
    dtype: Any = np.float64
    patience: float = math.inf
    keeps_path: bool = False
    values: int = 0
    gradients: int = 0
    started: float = 0.0
    path: list[tuple[float, np.ndarray]] = dataclasses.field(default_factory=list)
    says_success: bool | None = None

    def __post_init__(self) -> None:
        self._lowest, self._lowest_at = math.inf, 0.0
        self._value = jax.jit(self.objective)
        self._value_and_grad = jax.jit(jax.value_and_grad(self.objective))

    @property
    def work(self) -> float:
        """Gradients plus a third of the values."""
        return self.gradients + self.values / 3

    def warm_up(self, x: np.ndarray) -> None:
        """Compiles the functions in advance, so that compile time is not charged."""
        self._value(np.asarray(x, self.dtype))
        self._value_and_grad(np.asarray(x, self.dtype))

    def uncounted(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """f(x) and its gradient for the final check, not charged."""
        value, grad = self._value_and_grad(np.asarray(x, self.dtype))
        return float(value), np.asarray(grad)

    def value(self, x: np.ndarray) -> float:
        """f(x), charged a third."""
        self.values += 1
        self._check()
        point = np.asarray(x, self.dtype)
        return self._seen(point, float(self._value(point)))

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """f(x) and its gradient, charged one."""
        self.gradients += 1
        self._check()
        point = np.asarray(x, self.dtype)
        value, grad = self._value_and_grad(point)
        return self._seen(point, float(value)), np.array(grad)

    def _seen(self, x: np.ndarray, value: float) -> float:
        if value < self._lowest:
            self._lowest, self._lowest_at = value, self.work
            if self.keeps_path:
                self.path.append((self.work, np.array(x)))
        return value

    def _check(self) -> None:
        self.started = self.started or time.process_time()
        seconds = time.process_time() - self.started
        waits = self.work - self._lowest_at > self.patience
        if waits or self.work > self.max_work or seconds > self.max_seconds:
            raise OutOfBudget(f"work {self.work:.0f}, {seconds:.0f} s")


# The problem that `counted` evaluates now. A compiled solver sees only `counted`, on
# vectors padded to a few sizes, so one compilation serves many problems. A padding
# variable stays at zero with gradient zero and changes no inner product.
_current: list[Counter] = []
_SIZES = (4, 8, 16, 64, 256, 1024)


def use(counter: Counter, x0: np.ndarray) -> np.ndarray:
    """Makes `counted` evaluate the problem of ``counter``; returns the padded start."""
    _current[:] = [counter]
    size = next((s for s in _SIZES if s >= x0.size), x0.size)
    return np.pad(x0, (0, size - x0.size)).astype(counter.dtype)


def _host_value(x: Any) -> np.ndarray:
    counter = _current[0]
    value = counter.value(np.asarray(x)[: counter.dimension])
    return np.asarray(value, counter.dtype)


def _host_value_and_grad(x: Any) -> tuple[np.ndarray, np.ndarray]:
    counter = _current[0]
    value, grad = counter.value_and_grad(np.asarray(x)[: counter.dimension])
    return np.asarray(value, counter.dtype), np.pad(
        grad, (0, np.size(x) - counter.dimension)
    )


@jax.custom_jvp
def counted(x: jax.Array) -> jax.Array:
    """The current problem as a JAX function that calls back to its counter."""
    return jax.pure_callback(_host_value, jax.ShapeDtypeStruct((), x.dtype), x)


@counted.defjvp
def _counted_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    value, grad = jax.pure_callback(
        _host_value_and_grad,
        (
            jax.ShapeDtypeStruct((), x.dtype),
            jax.ShapeDtypeStruct(x.shape, x.dtype),
        ),
        x,
    )
    return value, jnp.sum(grad * x_dot)
