"""Newton-Schulz orthogonalization of matrices, Muon's step without its momentum."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, checked_dtypes, select, stored_like, times
from nlcg_optax.preconditioners.matrices import (
    DimensionNumbers,
    all_finite,
    matrix_views,
    of_norm,
    scaled_to_one,
    second_moment,
    vector_mask,
    widened,
)
from nlcg_optax.preconditioners.nested import for_leaves, with_sign_checked
from nlcg_optax.transformation import transformation
from nlcg_optax.wrappers.not_schedules import not_schedules
from nlcg_optax.xla.automatic_sharding import with_automatic_sharding
from nlcg_optax.xla.known import is_known

NORMALIZATIONS = ("frobenius", "spectral", "aol", "schatten")


class ScaleByOrthogonalizationState(NamedTuple):
    """State of `scale_by_orthogonalization`.

    Attributes:
      vectors: state of the transformation of vectors and scalars.
    """

    vectors: PyTree


@not_schedules("weight_dimension_numbers", static=("steps",))
def scale_by_orthogonalization(
    *,
    steps: int = 5,
    coefficients: tuple[float, float, float]
    | tuple[tuple[float, float, float], ...] = (3.4445, -4.775, 2.0315),
    normalization: Literal["frobenius", "spectral", "aol", "schatten"] = "frobenius",
    restore_norm: bool = False,
    vectors: optax.GradientTransformation | None = None,
    weight_dimension_numbers: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces each matrix by its nearest orthogonal one, approximately.

    With the singular value decomposition :math:`G = U \Sigma V^\top`,

    .. math:: P G \approx U V^\top = (G G^\top)^{-1/2} G,

    by the quintic Newton-Schulz iteration :math:`X \leftarrow a X + (b A + c A^2) X`,
    :math:`A = X X^\top`, of Muon (Jordan, 2024; ``optax.contrib.muon``), whose default
    coefficients bring all but tiny singular values between 0.68 and 1.21 in five
    steps. Muon's momentum is left to β: nest this transformation as ``preconditioner``
    of `scale_by_nlcg`. The iteration runs in float32 or wider and does not depend on
    the scale of the gradient.

    Since :math:`\langle G, U V^\top\rangle` is the sum of the singular values,
    :math:`g^\top z` is of the first degree in the gradient. With ``restore_norm=True``
    each matrix keeps the Frobenius norm of its gradient, and :math:`g^\top z` is of the
    second degree, as the conjugacy rules assume.

    Args:
      steps: steps of the iteration.
      coefficients: (a, b, c), or one such triple per step.
      normalization: how the singular values are bounded before the iteration; see
        ``preconditioning`` of ``optax.contrib.scale_by_muon``.
      restore_norm: whether each matrix keeps the Frobenius norm of its gradient.
      vectors: transformation :math:`g \mapsto P g` of leaves that are not matrices,
        without a learning rate and its sign; by default the root mean square of Adam,
        ``optax.scale_by_rms`` with decay 0.999. ``num_vector_ascents`` of the
        diagnostics counts updates at which it turns them uphill; outside of ``jit``
        there is also a warning if that happens at the first.
      weight_dimension_numbers: which axes are rows and columns, as
        ``muon_weight_dimension_numbers`` of ``optax.contrib.muon``: a tree of
        ``optax.contrib.MuonDimensionNumbers`` and None (a vector), or a function from
        the parameters to one. By default leaves of two or more axes are matrices, with
        the last axis as columns.

    Returns:
      A transformation that also works alone. Matrices need no state. A non-finite
      gradient leaves the state of the vectors unchanged.

    Under ``jit`` a matrix split along its longer side costs an all-reduce of the small
    Gram matrix per step. A matrix split along its shorter side, or a convolution kernel
    split along its inputs, is gathered.

    Raises:
      ValueError: if an argument is out of its range.
      TypeError: if ``vectors`` is not a transformation or, in ``init``, a leaf is
        complex and the normalization is ``"schatten"``.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_orthogonalization(coefficients=(15/8, -5/4, 3/8), steps=9)
      >>> grads = {"w": jnp.array([[0., 3.], [1., 0.]]), "b": jnp.array([2., -8.])}
      >>> z, _ = tx.update(grads, tx.init(grads))
      >>> bool(jnp.allclose(z["w"], jnp.array([[0., 1.], [1., 0.]]), atol=1e-5))
      True
      >>> bool(jnp.allclose(z["b"], jnp.array([1., -1.]), atol=1e-5))
      True
    """
    validation.check_static(steps=steps, restore_norm=restore_norm)
    validation.check_positive_int("steps", steps)
    validation.check_bool("restore_norm", restore_norm)
    validation.check_choice("normalization", normalization, NORMALIZATIONS)
    _check_coefficients(coefficients, steps)
    if vectors is not None:
        validation.check_transformation("vectors", vectors)
    transform_vectors = for_leaves(
        second_moment() if vectors is None else with_sign_checked("vectors", vectors),
        vector_mask(weight_dimension_numbers),
    )

    options = _Options(
        int(steps),
        coefficients,
        normalization,
        restore_norm,
        transform_vectors,
        weight_dimension_numbers,
    )

    return transformation(options, _init, _update)


class _Options(NamedTuple):
    """Arguments of `scale_by_orthogonalization`, with ``vectors`` masked to vectors."""

    steps: int
    coefficients: Any
    normalization: str
    restore_norm: bool
    vectors: optax.GradientTransformationExtraArgs
    weight_dimension_numbers: Any


def _init(options: _Options, params: PyTree) -> ScaleByOrthogonalizationState:
    dtypes = checked_dtypes(params)
    is_complex = any(jnp.issubdtype(x, jnp.complexfloating) for x in dtypes)
    if is_complex and options.normalization == "schatten":
        others = NORMALIZATIONS[:-1]
        raise TypeError(
            f"normalization='schatten' is for real parameters; allowed are {others}"
        )
    return ScaleByOrthogonalizationState(
        options.vectors.init(jax.tree.map(widened, params))
    )


def _update(
    options: _Options,
    updates: PyTree,
    state: ScaleByOrthogonalizationState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByOrthogonalizationState]:
    validation.check_state(
        "scale_by_orthogonalization", state, ScaleByOrthogonalizationState
    )
    views = matrix_views(updates, options.weight_dimension_numbers)
    wide = jax.tree.map(widened, updates)
    new, vectors_state = options.vectors.update(
        wide, state.vectors, params, **extra_args
    )
    validation.check_same_structure("updates", updates, new)
    leaves, treedef = jax.tree.flatten(new)
    places = [i for i, view in enumerate(views) if view is not None]
    scaled = [scaled_to_one(leaves[i]) for i in places]
    matrices = [matrix for matrix, _ in scaled]
    numbers = tuple(DimensionNumbers(v.rows, v.columns) for v in views if v is not None)

    def orthogonalized(
        matrices: list[jax.Array], coefficients: Any
    ) -> tuple[list[jax.Array], None]:
        return _orthogonalized(
            matrices,
            coefficients,
            numbers=numbers,
            steps=options.steps,
            normalization=options.normalization,
        ), None

    factors, _ = with_automatic_sharding(orthogonalized, matrices, options.coefficients)
    if options.restore_norm:
        factors = [
            times(size, of_norm(z, matrix))
            for z, (matrix, size) in zip(factors, scaled, strict=True)
        ]
    for place, factor in zip(places, factors, strict=True):
        leaves[place] = factor
    z = stored_like(jax.tree.unflatten(treedef, leaves), updates)
    # The state of vectors has squares, which may overflow.
    finite = all_finite(jax.tree.map(lambda x: x * x, wide))
    kept = select(finite, vectors_state, state.vectors)
    return z, ScaleByOrthogonalizationState(kept)


# Compiled once: outside of jit its loops would otherwise compile at every update.
@functools.partial(
    jax.jit, static_argnames=("numbers", "steps", "normalization"), inline=True
)
def _orthogonalized(
    matrices: list[jax.Array],
    coefficients: Any,
    *,
    numbers: tuple[DimensionNumbers, ...],
    steps: int,
    normalization: str,
) -> list[jax.Array]:
    muon = optax.contrib.scale_by_muon(
        coefficients,
        steps,
        beta=0.0,
        nesterov=False,
        preconditioning=normalization,
        weight_dimension_numbers=list(numbers),
    )
    # Without momentum every step starts from the initial state.
    with jax.numpy_dtype_promotion("standard"):  # Optax divides by an integer power
        return muon.update(matrices, muon.init(matrices))[0]


def _check_coefficients(coefficients: Any, steps: int) -> None:
    try:
        given = jnp.asarray(coefficients)
    except (TypeError, ValueError):  # a name, or rows of different lengths
        given = jnp.zeros([])
    fits = given.shape in ((3,), (steps, 3))
    fits &= not jnp.issubdtype(given.dtype, jnp.complexfloating)
    if not fits or (is_known(given) and not np.isfinite(given).all()):
        raise ValueError(
            f"coefficients={coefficients!r} must be three finite numbers, or three for "
            f"each of steps={steps!r}"
        )
