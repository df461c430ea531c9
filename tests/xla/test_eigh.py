"""Decompositions one by one on a CPU: their numbers, and that they never wait."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax.preconditioners.kronecker_factors import inverse_root
from nlcg_optax.xla.eigh import eigh

ROOT = Path(__file__).parents[2]


def hermitian(values, dtype, seed=0):
    """A matrix with these eigenvalues, in float64, and rounded to a dtype."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, len(values), len(values)))
    is_complex = np.issubdtype(dtype, np.complexfloating)
    basis = np.linalg.qr(noise[0] + 1j * noise[1] if is_complex else noise[0])[0]
    return ((basis * values) @ basis.conj().T).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("order", [2, 4])
def test_inverse_roots_up_to_a_condition_of_ten_million(x64, dtype, order):
    roots = jax.jit(lambda a: inverse_root(a, order, 1e-6))
    unit = np.finfo(dtype).eps
    for condition in (1.0, 1e3, 1e7):
        matrix = hermitian(np.geomspace(1.0, condition, 33), dtype)
        values, vectors = np.linalg.eigh(matrix.astype(np.result_type(dtype, 1.0)))
        largest = values[-1]
        damped = np.maximum(values, 33 * unit * largest) + 1e-6 * largest
        expected = (vectors * damped ** (-1 / order)) @ vectors.conj().T
        # Backward stable: eigenvalues are off by a few dozen units of the largest, of
        # which the smallest, damped to 1e-6 of it at least, feels the ratio.
        error = 40 * unit * largest / damped[0] + 40 * unit
        np.testing.assert_allclose(
            roots(matrix), expected, atol=error * np.abs(expected).max()
        )


@pytest.mark.parametrize("shape", [(0, 3, 3), (1, 1, 1), (2, 3, 4, 4)])
def test_batches_are_their_matrices(shape):
    rng = np.random.default_rng(0)
    a = rng.normal(size=shape).astype(np.float32)
    a = a + np.swapaxes(a, -1, -2)
    values, vectors = eigh(jnp.asarray(a))
    rebuilt = (vectors * values[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    np.testing.assert_allclose(rebuilt, a, atol=2e-5)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(a), atol=2e-5)


def test_under_vmap_and_derivatives():
    a = jnp.stack(
        [jnp.asarray(hermitian([1.0, 2.0, 5.0], np.float32, s)) for s in (0, 1)]
    )
    for batched in (jax.vmap(eigh)(a), jax.vmap(jax.vmap(eigh))(a[None])):
        values = batched[0].reshape(2, 3)
        np.testing.assert_allclose(values, [[1.0, 2.0, 5.0]] * 2, rtol=1e-5)

    def sum_of_roots(b):
        return jnp.sum(inverse_root(b, 2, 0.0))

    change = jnp.asarray(hermitian([0.3, -0.2, 0.1], np.float32, 2))
    _, slope = jax.jvp(sum_of_roots, (a[0],), (change,))
    step = 1e-2  # the third derivative adds some 1e-4, roundings 1e-7 / 1e-2
    central = sum_of_roots(a[0] + step * change) - sum_of_roots(a[0] - step * change)
    np.testing.assert_allclose(slope, central / (2 * step), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(
        jnp.vdot(jax.grad(sum_of_roots)(a[0]), change), slope, rtol=1e-4
    )


def test_a_matrix_that_is_not_finite_gives_nan():
    a = jnp.stack([jnp.eye(3), jnp.full((3, 3), jnp.nan)])
    values = eigh(a)[0]
    np.testing.assert_array_equal(values[0], 1.0)
    assert np.isnan(values[1]).all()


@pytest.mark.parametrize("mapped", [False, True])
def test_no_program_for_cpu_decomposes_a_batch(mapped):
    function = jax.vmap(inverse_root, (0, None, None)) if mapped else inverse_root
    a = jnp.zeros([5, 2, 3, 3])
    text = jax.jit(lambda a: function(a, 4, 1e-6)).lower(a).as_text()
    operands = re.findall(r"@lapack_\w+.*?: \(tensor<([\dx]*)x[a-z]", text)
    assert operands
    assert set(operands) == {"3x3"}


# As large a part of the time in decompositions as can be: a refresh at every step.
LOOP = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
import jax, jax.numpy as jnp, optax
from nlcg_optax import scale_by_kronecker
kronecker = scale_by_kronecker(refresh_period=1, block_size=32)
tx = optax.chain(kronecker, optax.scale(-1e-2))
x = jax.random.normal(jax.random.key(0), (16, 64))
params = [jax.random.normal(jax.random.key(i), (64, 64)) / 8 for i in range(4)]
def loss(params):
    y = x
    for w in params:
        y = jnp.tanh(y @ w)
    return jnp.sum((y - 0.5) ** 2)
@jax.jit
def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state
state = tx.init(params)
for _ in range(600):
    params, state = step(params, state)
print("ended" if jnp.isfinite(loss(params)) else "not finite")
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_training_with_refreshes_at_every_step_ends(threads):
    # With batched decompositions two threads stopped within some hundred steps.
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(threads)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=400,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "ended"
