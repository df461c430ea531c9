"""One counter for all solvers, which counts every evaluation, also in compiled code."""

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
        max_seconds: budget of processor time, which other programs do not shorten, from
            the first evaluation on, so that compiling a solver is not charged.
        values: values alone so far.
        gradients: gradients, with or without the value, so far.
    """

    objective: Callable[[jax.Array], jax.Array]
    max_work: float
    max_seconds: float
    dimension: int = 0
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

    def warm_up(self, x: np.ndarray) -> None:
        """Compiles the functions in advance, so that compile time is not charged."""
        self._value(np.asarray(x))
        self._value_and_grad(np.asarray(x))

    def uncounted(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """f(x) and its gradient for the final check, not charged."""
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
        self.started = self.started or time.process_time()
        seconds = time.process_time() - self.started
        if self.work > self.max_work or seconds > self.max_seconds:
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
    return np.pad(x0, (0, size - x0.size))


def _host_value(x: Any) -> np.ndarray:
    counter = _current[0]
    return np.asarray(counter.value(np.asarray(x)[: counter.dimension]))


def _host_value_and_grad(x: Any) -> tuple[np.ndarray, np.ndarray]:
    counter = _current[0]
    value, grad = counter.value_and_grad(np.asarray(x)[: counter.dimension])
    return np.asarray(value), np.pad(grad, (0, np.size(x) - counter.dimension))


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
