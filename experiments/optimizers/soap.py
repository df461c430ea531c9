"""SOAP: Adam in the eigenbasis of Shampoo (Vyas et al., arXiv 2409.11321)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.optimizers.ramp import with_ramp
from experiments.optimizers.registration import register
from experiments.optimizers.spaces import DECOUPLED, space_around
from experiments.weight_decay import decay_mask

PyTree = Any
EPS = 1e-8


class Basis(NamedTuple):
    """Kronecker factors of one matrix ``[m, n]`` and their eigenvectors.

    Attributes:
      left: average of G G^T, ``[m, m]``.
      right: average of G^T G, ``[n, n]``.
      rows: eigenvectors of ``left``, as columns.
      columns: eigenvectors of ``right``, as columns.
    """

    left: jax.Array
    right: jax.Array
    rows: jax.Array
    columns: jax.Array


class SoapState(NamedTuple):
    """State of `scale_by_soap`.

    Attributes:
      count: number of updates.
      mean: average of the gradients.
      square: average of the squares of the rotated gradients.
      bases: a `Basis` per matrix, None for a vector.
    """

    count: jax.Array  # type: ignore[assignment]
    mean: PyTree
    square: PyTree
    bases: list[Basis | None]


def scale_by_soap(
    b1: float | jax.Array = 0.95,
    b2: float | jax.Array = 0.95,
    *,
    refresh_period: int = 10,
) -> optax.GradientTransformation:
    r"""Adam in the eigenbasis of Kronecker factors, algorithm 3 of the paper.

    .. math::
        M &= \beta_1 M + (1 - \beta_1) G, \quad
        V = \beta_2 V + (1 - \beta_2) (Q_L^\top G Q_R)^2, \\
        U &= Q_L \left(Q_L^\top M Q_R / \sqrt{V}\right) Q_R^\top,

    with bias corrections as in Adam; then L and R, the averages of
    :math:`G G^\top` and :math:`G^\top G` with :math:`\beta_2`, are updated, and every
    ``refresh_period`` steps one step of orthogonal iteration (a product and a QR
    decomposition) moves the eigenvectors. As in the authors' code the first gradient
    only initializes L, R and their eigenvectors: its update is zero. Vectors use Adam;
    a convolution kernel is a matrix with as many columns as outputs.

    Args:
      b1: decay of the average of gradients.
      b2: decay of the average of squares and of the factors.
      refresh_period: steps between two orthogonal iterations.
    """

    def init(params: PyTree) -> SoapState:
        def basis(leaf: jax.Array) -> Basis | None:
            if leaf.ndim < 2:
                return None
            rows, columns = _matrix(leaf).shape
            return Basis(
                jnp.zeros([rows, rows]),
                jnp.zeros([columns, columns]),
                jnp.eye(rows),
                jnp.eye(columns),
            )

        zeros = jax.tree.map(jnp.zeros_like, params)
        return SoapState(
            jnp.zeros([], jnp.int32),
            zeros,
            jax.tree.map(jnp.zeros_like, params),
            [basis(leaf) for leaf in jax.tree.leaves(params)],
        )

    def update(
        grads: PyTree, state: SoapState, params: PyTree | None = None
    ) -> tuple[PyTree, SoapState]:
        del params
        count = state.count + 1
        is_first = state.count == 0
        leaves, tree = jax.tree.flatten(grads)
        means = jax.tree.leaves(state.mean)
        squares = jax.tree.leaves(state.square)
        updates, new_means, new_squares, bases = [], [], [], []
        for g, mean, square, basis in zip(
            leaves, means, squares, state.bases, strict=True
        ):
            # Averages start with the second gradient.
            kept = jnp.where(is_first, 0.0, g)
            mean = b1 * mean + (1 - b1) * kept
            square = b2 * square + (1 - b2) * _rotated(basis, kept) ** 2
            corrected = mean / (1 - b1 ** jnp.maximum(state.count, 1))
            root = jnp.sqrt(square / (1 - b2 ** jnp.maximum(state.count, 1)))
            updates.append(_back(basis, _rotated(basis, corrected) / (root + EPS)))
            new_means.append(mean)
            new_squares.append(square)
            bases.append(
                None
                if basis is None
                else _moved(basis, _matrix(g), b2, state.count, refresh_period)
            )
        updates, mean, square = (
            jax.tree.unflatten(tree, found)
            for found in (updates, new_means, new_squares)
        )
        return updates, SoapState(count, mean, square, bases)

    return optax.GradientTransformation(init, update)


def _matrix(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(-1, leaf.shape[-1])


def _rotated(basis: Basis | None, leaf: jax.Array) -> jax.Array:
    if basis is None:
        return leaf
    return (basis.rows.T @ _matrix(leaf) @ basis.columns).reshape(leaf.shape)


def _back(basis: Basis | None, leaf: jax.Array) -> jax.Array:
    if basis is None:
        return leaf
    return (basis.rows @ _matrix(leaf) @ basis.columns.T).reshape(leaf.shape)


def _eigenvectors_of(factor: jax.Array) -> jax.Array:
    """Eigenvectors by decreasing eigenvalue, as orthogonal iteration orders them."""
    return jnp.linalg.eigh(factor)[1][:, ::-1]


def _orthonormalized_of(columns: jax.Array) -> jax.Array:
    return jnp.linalg.qr(columns)[0]


# A batch of decompositions can hang on a CPU, see `nlcg_optax.xla.eigh`; runs that are
# trained together make batches of them.
_eigenvectors = jax.custom_batching.sequential_vmap(_eigenvectors_of)
_orthonormalized = jax.custom_batching.sequential_vmap(_orthonormalized_of)


def _moved(
    basis: Basis, g: jax.Array, b2: Any, count: jax.Array, refresh_period: int
) -> Basis:
    left = b2 * basis.left + (1 - b2) * g @ g.T
    right = b2 * basis.right + (1 - b2) * g.T @ g

    def decomposed() -> tuple[jax.Array, jax.Array]:
        return _eigenvectors(left), _eigenvectors(right)

    def iterated() -> tuple[jax.Array, jax.Array]:
        return (
            _orthonormalized(left @ basis.rows),
            _orthonormalized(right @ basis.columns),
        )

    def same() -> tuple[jax.Array, jax.Array]:
        return basis.rows, basis.columns

    which = jnp.where(count == 0, 0, jnp.where(count % refresh_period == 0, 1, 2))
    rows, columns = jax.lax.switch(which, [decomposed, iterated, same])
    return Basis(left, right, rows, columns)


def _soap(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.95,
    b2: float = 0.95,
    refresh_period: int = 10,
    weight_decay: float = 0.0,
    ramp: float | None = None,
) -> optax.GradientTransformation:
    return optax.chain(
        with_ramp(
            lambda momentum: scale_by_soap(momentum, b2, refresh_period=refresh_period),
            momentum,
            ramp,
        ),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


register(
    "soap",
    _soap,
    label="SOAP",
    color="#dd1c77",
    space=space_around(0.005, "momentum", DECOUPLED),
)
