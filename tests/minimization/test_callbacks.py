"""Callbacks of `minimize`, and Ctrl-C: who sees each iteration, and ends a run."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import Status, minimize

START = np.array([-1.2, 1.0], np.float32)


def rosenbrock(x, offset=0.0):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 + offset


def test_a_callback_sees_each_iteration_once_in_a_batch():
    seen = {0: [], 1: [], 2: []}

    def callback(progress):
        seen[round(float(progress.fun) / 1000)].append(int(progress.nit))

    starts = jnp.array([[-1.2, 1.0], [1.0, 1.0], [0.0, 0.0]])
    offsets = jnp.array([0.0, 1000.0, 2000.0])
    result = jax.vmap(lambda x, c: minimize(rosenbrock, x, (c,), callback=callback))(
        starts, offsets
    )
    jax.effects_barrier()
    for k in range(3):
        assert seen[k] == list(range(int(result.nit[k]) + 1))


def test_a_callback_sees_the_point_and_ends_the_run():
    points = []

    def stop(progress):
        if progress.nit == 2:
            raise StopIteration

    def by_value(xk):
        points.append(xk)
        return len(points) == 3

    def both(progress, x):
        np.testing.assert_allclose(progress.fun, rosenbrock(x), rtol=1e-5)
        return progress.nit >= 2

    def scipys(*, intermediate_result):
        value = rosenbrock(intermediate_result.x)
        np.testing.assert_allclose(intermediate_result.fun, value, rtol=1e-5)
        return intermediate_result.nit >= 2

    later = []

    def with_defaults(x, last=2, **rest):
        later.append(x)
        return len(later) > last

    for callback in (stop, by_value, both, scipys, with_defaults):
        result = minimize(rosenbrock, START, callback=callback)
        assert int(result.nit) == 2
        assert int(result.status) == Status.STOPPED
        assert not bool(result.success)
    np.testing.assert_array_equal(points[0], START)
    np.testing.assert_array_equal(points[2], result.x)
    rest = minimize(rosenbrock, START, state=result.state)
    assert bool(rest.success)


def test_an_error_in_a_callback_is_raised_as_it_is():
    def callback(progress):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        minimize(rosenbrock, START, callback=callback)


def test_a_callback_may_begin_the_same_run_with_a_callback():
    def fun(x):
        return jnp.sum((x - 1) ** 4)

    outer, inner = [], []

    def nested(x):
        outer.append(minimize(fun, x - 1, callback=inner.append, max_iterations=2).nit)

    assert minimize(fun, jnp.zeros(2), callback=nested, max_iterations=3).nit == 3
    assert outer == [2] * 4  # the start is told, too
    assert [progress.nit for progress in inner] == [0, 1, 2] * 4


@dataclasses.dataclass
class Log:
    """A callback without a hash."""

    iterations: list

    def __call__(self, progress):
        self.iterations.append(int(progress.nit))


def test_a_callback_needs_no_hash():
    alone, together = Log([]), Log([])
    minimize(rosenbrock, START, callback=alone, max_iterations=2)
    assert alone.iterations == [0, 1, 2]
    jax.vmap(lambda x: minimize(rosenbrock, x, callback=together, max_iterations=2).x)(
        jnp.stack([START, START])
    )
    assert sorted(together.iterations) == [0, 0, 1, 1, 2, 2]


# A process started in the background may have inherited that SIGINT is ignored.
ENDLESS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import jax.numpy as jnp
from nlcg_optax import minimize
def fun(x):
    y = jnp.outer(x, x)
    for _ in range(4):
        y = jnp.sin(y @ y / 700.)
    valley = 100 * (x[1:] - x[:-1]**2)**2 + (1 - x[:-1])**2
    return jnp.sum(valley) + 1e-9 * jnp.sum(y)
def run(max_iterations):
    minimize(fun, jnp.full(700, -1.), tol=1e-30, tol_kind="absolute", patience=10**9,
             max_iterations=max_iterations, max_evaluations=1e9)
run(1)  # compiles the program of any limits
try:
    print("begins", flush=True)
    run(10**9)
    print("ended")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.slow
def test_control_c_ends_a_run():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    try:
        assert process.stdout.readline() == "begins\n"
        time.sleep(10)  # the pieces of its loop have grown to their full length
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert out == "interrupted\n"
