"""SOAP against the algorithm of its paper, written out in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from experiments import optimizers
from experiments.optimizers.soap import scale_by_soap

B1, B2, EPS = 0.9, 0.8, 1e-8


def eigenvectors(matrix):
    return np.linalg.eigh(matrix)[1][:, ::-1]


def papers(grads, period):
    """Algorithm 3 of arXiv 2409.11321, with the bias corrections of Adam.

    The first gradient only starts the factors, as in the authors' code.
    """
    first, *others = grads
    left, right = (1 - B2) * first @ first.T, (1 - B2) * first.T @ first
    rows, columns = eigenvectors(left), eigenvectors(right)
    mean, square = np.zeros_like(first), np.zeros_like(first)
    out = [np.zeros_like(first)]
    for t, g in enumerate(others, start=1):
        mean = B1 * mean + (1 - B1) * g
        square = B2 * square + (1 - B2) * (rows.T @ g @ columns) ** 2
        root = np.sqrt(square / (1 - B2**t)) + EPS
        rotated = rows.T @ (mean / (1 - B1**t)) @ columns
        out.append(rows @ (rotated / root) @ columns.T)
        left = B2 * left + (1 - B2) * g @ g.T
        right = B2 * right + (1 - B2) * g.T @ g
        if t % period == 0:
            rows = np.linalg.qr(left @ rows)[0]
            columns = np.linalg.qr(right @ columns)[0]
    return out


def updates_of(tx, grads):
    state, out = tx.init(grads[0]), []
    update = jax.jit(tx.update)
    for grad in grads:
        found, state = update(grad, state, grad)  # any parameters
        out.append(found)
    return out


def test_soap_is_the_algorithm_of_its_paper():
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(7, 4, 3)) * np.array([3.0, 1.0, 0.3])
    found = updates_of(
        scale_by_soap(B1, B2, refresh_period=2),
        [jnp.asarray(g, jnp.float32) for g in grads],
    )
    # The first factor has rank three of four: the last eigenvector is unique up to its
    # sign, which cancels. Seven steps in float32, with quotients of about one.
    for mine, expected in zip(found, papers(grads, 2), strict=True):
        np.testing.assert_allclose(mine, expected, atol=2e-4)


def test_a_kernel_is_a_matrix_and_a_vector_takes_adam():
    rng = np.random.default_rng(1)
    kernels = jnp.asarray(rng.normal(size=(4, 3, 1, 2, 5)), jnp.float32)
    tx = scale_by_soap(B1, B2, refresh_period=1)
    as_kernels = updates_of(tx, list(kernels))
    as_matrices = updates_of(tx, list(kernels.reshape(4, 6, 5)))
    for kernel, matrix in zip(as_kernels, as_matrices, strict=True):
        np.testing.assert_array_equal(kernel.reshape(6, 5), matrix)
    vectors = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    found = updates_of(tx, list(vectors))
    adam = optimizers.build("adam", 1.0, {"b1": B1, "b2": B2}).transformation
    # Adam's second update, because SOAP begins with the second gradient.
    for mine, expected in zip(found[1:], updates_of(adam, list(vectors[1:]))):
        np.testing.assert_allclose(mine, -expected, rtol=1e-5)


def test_a_ramped_momentum_rises_from_zero():
    grads = [jnp.array([1.0]), jnp.array([2.0]), jnp.array([4.0])]
    options = {"momentum": 0.8, "ramp": 0.5}
    tx = optimizers.build("nesterov", 1.0, options).transformation
    traces, trace = [], 0.0
    for step, grad in enumerate(grads):
        momentum = 0.8 * (1 - 0.5**step)
        trace = float(grad[0]) + momentum * trace
        traces.append(float(grad[0]) + momentum * trace)
    found = [-float(update[0]) for update in updates_of(tx, grads)]
    np.testing.assert_allclose(found, traces, rtol=1e-6)
    # Without a ramp it is a constant, and with a decay of zero as well.
    constant, zero = (
        updates_of(optimizers.build("muon", 0.1, {"ramp": r}).transformation, grads)
        for r in (None, 0.0)
    )
    np.testing.assert_allclose(zero, constant, rtol=1e-6)


def test_runs_side_by_side_decompose_one_matrix_after_the_other():
    """Batches of LAPACK's decompositions can hang on a CPU with two cores."""
    tx = scale_by_soap(B1, B2, refresh_period=2)
    grads = jax.random.normal(jax.random.key(0), (3, 4, 3, 3))  # steps and runs first

    def run(grads):
        return jnp.stack(updates_of(tx, grads))

    together = jax.jit(jax.vmap(run, in_axes=1))
    text = together.lower(grads).compile().as_text()
    shapes = re.findall(r"(f32\[[\d,]*\])\S* custom-call\([^\n]*lapack_", text)
    tuples = re.findall(r"\((f32\[[\d,]*\])[^\n]*custom-call\([^\n]*lapack_", text)
    assert tuples
    for shape in shapes + tuples:
        assert not shape.startswith("f32[4,")
    np.testing.assert_allclose(
        together(grads), [run(grads[:, k]) for k in range(4)], rtol=1e-4, atol=1e-5
    )
