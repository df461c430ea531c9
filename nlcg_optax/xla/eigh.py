"""Eigendecompositions that cannot hang on a CPU."""

import functools
import math

import jax
import jax.numpy as jnp

from nlcg_optax.xla import switch


def eigh(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes ``jnp.linalg.eigh``, its twin; on CPU one matrix after the other.

    jaxlib splits a batch of decompositions over XLA's pool of threads and waits for it
    on a thread of that pool, so that batches wait forever if as many run at once as
    there are threads (``lapack_ssyevd_ffi``, seen in jaxlib 0.10.2). It never splits a
    single matrix. Accelerators decompose the whole batch at once.

    Args:
      matrices: Hermitian, ``[..., size, size]``, real or complex; symmetrized first.

    Returns:
      The eigenvalues in ascending order, ``[..., size]``, and the eigenvectors in
      columns, like ``matrices``. Those of a matrix that is not finite are NaN.

    Examples:
      >>> import jax.numpy as jnp
      >>> eigh(jnp.array([[[2., 0.], [0., 1.]], [[5., 0.], [0., 4.]]]))[0]
      Array([[1., 2.],
             [4., 5.]], dtype=float32)
    """
    return _eigh(matrices) if switch.is_on() else _all_at_once(matrices)


@jax.custom_jvp
@functools.partial(jax.jit, inline=True)
def _eigh(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.platform_dependent(matrices, cpu=_one_by_one, default=_all_at_once)


@_eigh.defjvp
def _eigh_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The derivative of ``jnp.linalg.eigh``, which a custom batching rule hides.

    With ``dA = V B Vᴴ``: ``dλ_i = B_ii``, ``dV = V F``, ``F_ij = B_ij / (λ_j - λ_i)``
    off the diagonal.
    """
    (matrices,), (changes,) = primals, tangents
    values, vectors = _eigh(matrices)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    changes = (changes + jnp.conj(jnp.swapaxes(changes, -1, -2))) / 2
    rotated = product(
        product(jnp.conj(jnp.swapaxes(vectors, -1, -2)), changes), vectors
    )
    eye = jnp.eye(values.shape[-1], dtype=values.dtype)
    gaps = values[..., None, :] - values[..., :, None]
    mixed = (1 / (eye + gaps) - eye).astype(vectors.dtype) * rotated
    change_of_values = jnp.real(jnp.diagonal(rotated, axis1=-2, axis2=-1))
    return (values, vectors), (change_of_values, product(vectors, mixed))


def _all_at_once(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, vectors = jnp.linalg.eigh(matrices)
    return values, vectors


def _one_by_one(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    *batch, size, _ = matrices.shape
    split = jax.typeof(matrices).sharding.spec
    if any(split):  # a loop cannot run over an axis that an explicit mesh splits
        matrices = jax.sharding.reshard(matrices, jax.P())
    flat = matrices.reshape(math.prod(batch), size, size)
    values, vectors = jax.lax.map(_single, flat)
    values, vectors = values.reshape(*batch, size), vectors.reshape(matrices.shape)
    if any(split):
        values = jax.sharding.reshard(values, jax.P(*split[:-1]))
        vectors = jax.sharding.reshard(vectors, split)
    return values, vectors


_single = jax.custom_batching.custom_vmap(_all_at_once)


@_single.def_vmap
def _single_under_vmap(
    axis_size: int,  # noqa: ARG001 -- JAX passes it
    in_batched: list[bool],  # noqa: ARG001
    matrices: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[bool, bool]]:
    return _one_by_one(matrices), (True, True)
