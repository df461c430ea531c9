"""One honest counter for every solver: what it really evaluates, wherever it runs."""

from __future__ import annotations

import dataclasses
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
        max_seconds: budget of time, from the first evaluation on, so that compiling a
            solver is not charged.
        values: values alone so far.
        gradients: gradients, with or without the value, so far.
    """

    objective: Callable[[jax.Array], jax.Array]
    max_work: float
    max_seconds: float
    values: int = 0
    gradients: int = 0
    started: float = 0.0

    def __post_init__(self) -> None:
        self._value = jax.jit(self.objective)
        self._value_and_grad = jax.jit(jax.value_and_grad(self.objective))

    @property
    def work(self) -> float:
        """Gradients plus a third of the values."""
        return self.gradients + self.values / 3

    def uncounted(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """f and its gradient for the referee, not charged."""
        value, grad = self._value_and_grad(np.asarray(x, np.float64))
        return float(value), np.asarray(grad)

    def value(self, x: np.ndarray) -> float:
        """f(x), charged a third."""
        self.values += 1
        self._check()
        return float(self._value(np.asarray(x)))

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """f(x) and its gradient, charged one."""
        self.gradients += 1
        self._check()
        value, grad = self._value_and_grad(np.asarray(x))
        return float(value), np.array(grad)

    def _check(self) -> None:
        self.started = self.started or time.perf_counter()
        seconds = time.perf_counter() - self.started
        if self.work > self.max_work or seconds > self.max_seconds:
            raise OutOfBudget(f"work {self.work:.0f}, {seconds:.0f} s")


# The problem that `counted` evaluates now. A compiled solver sees only `counted`, so
# one compilation serves all problems of one dimension.
_current: list[Counter] = []


def use(counter: Counter) -> None:
    """Makes ``counter`` the problem behind `counted`."""
    _current[:] = [counter]


def _host_value(x: Any) -> np.ndarray:
    return np.asarray(_current[0].value(np.asarray(x)))


def _host_value_and_grad(x: Any) -> tuple[np.ndarray, np.ndarray]:
    value, grad = _current[0].value_and_grad(np.asarray(x))
    return np.asarray(value), grad


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
