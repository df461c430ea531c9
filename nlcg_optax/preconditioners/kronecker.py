"""Kronecker-factored second moments: Shampoo's preconditioner, without momentum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.curvature.refresh import if_due, is_due
from nlcg_optax.dtypes import PyTree, accumulator_dtype, on_arrays
from nlcg_optax.preconditioners.kronecker_factors import (
    Blocks,
    averaged,
    blocks_for,
    gram,
    multiplied,
    refreshed_roots,
)
from nlcg_optax.preconditioners.matrices import (
    all_finite,
    matrix_views,
    of_norm,
    second_moment,
    select,
    vector_mask,
    widened,
)
from nlcg_optax.xla.meshes import sharding_of_axes, with_auto_axes


class KroneckerDiagnostics(NamedTuple):
    """What `scale_by_kronecker` did, as scalars.

    Attributes:
      num_refreshes: refreshes of the inverse roots so far.
      num_root_failures: roots that came out not finite and were refused so far, one
        for each factor of each matrix.
    """

    num_refreshes: jax.Array
    num_root_failures: jax.Array


class KroneckerSides(NamedTuple):
    """A factor, or its inverse root, for each side of each matrix.

    Trees like the parameters with one array in the place of each,
    ``[matrix in the leaf, row block, column block, size, size]``, and
    ``optax.MaskedNode`` where a side has no factor or the leaf is not a matrix.

    Attributes:
      rows: of the rows.
      columns: of the columns.
    """

    rows: PyTree
    columns: PyTree


class ScaleByKroneckerState(NamedTuple):
    """State of `scale_by_kronecker`.

    Attributes:
      count: number of updates with a finite gradient.
      factors: exponential averages of the factors, not corrected for their bias.
      roots: the inverse roots by which gradients are multiplied.
      diagonal: state of the nested diagonal transformation.
      diagnostics: counters.
    """

    count: jax.Array  # type: ignore[assignment]
    factors: KroneckerSides
    roots: KroneckerSides
    diagonal: PyTree
    diagnostics: KroneckerDiagnostics


def scale_by_kronecker(
    *,
    decay: float | jax.Array = 0.95,
    refresh_period: int = 10,
    relative_damping: float | jax.Array = 1e-6,
    block_size: int = 512,
    one_sided_ratio: float = 16.0,
    graft: bool = True,
    diagonal: optax.GradientTransformation | None = None,
    weight_dimension_numbers: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Preconditions each matrix by its left and right second-moment factors.

    With exponential averages :math:`L` of :math:`G G^\top` and :math:`R` of
    :math:`G^\top G`, corrected for their bias,

    .. math::
        P G = \left(L + \epsilon \lambda_{max}(L) I\right)^{-1/4} G
            \left(R + \epsilon \lambda_{max}(R) I\right)^{-1/4}.

    Source: Shampoo (Gupta, Koren and Singer, 2018), with the exponential average and
    the grafting of Anil et al. (2020). There is no momentum, which is left to β: nest
    it as ``preconditioner`` of `scale_by_nlcg`.

    - The inverse roots come from eigendecompositions every ``refresh_period`` steps,
      the first step included.
    - A side of more than ``block_size`` is cut into equal blocks (the last one padded
      with zeros), each with its own factors.
    - Where one side is more than ``one_sided_ratio`` times the other, only the shorter
      one has a factor, with the power :math:`-1/2`.
    - Leaves that are not matrices go through ``diagonal``. With ``graft=True`` matrices
      do so too, and each keeps the norm that comes out: the direction is that of the
      factors, the length that of the diagonal method.

    Factors and roots are kept in float32 or wider.

    Args:
      decay: decay of the averages, in [0, 1).
      refresh_period: steps between two refreshes of the roots. The extra argument
        ``refresh=True`` or ``refresh=False`` of ``update`` replaces the period.
      relative_damping: the :math:`\epsilon` above, a multiple of the largest
        eigenvalue.
      block_size: largest side of a factor.
      one_sided_ratio: ratio of the sides beyond which the longer one has no factor;
        at least one.
      graft: whether matrices take their norms from ``diagonal``. Without it the length
        of P G does not depend on that of G when both factors have converged.
      diagonal: an Optax transformation; by default the root
        mean square of Adam, ``optax.scale_by_rms`` with decay 0.999.
      weight_dimension_numbers: see `scale_by_orthogonalization`.

    Returns:
      A transformation that also stands alone. A gradient that is not finite leaves the
      state unchanged; roots that are not finite are refused and counted.

    Under ``jit`` with shardings, a side without a factor is only summed over. A side
    with a factor that is split over devices must be multiplied by the whole factor,
    so that the matrix is gathered, unless blocks and shards coincide. On explicit axes
    of a mesh the factors are on every device, except that they are split like the
    axis that numbers the matrices of a leaf.

    Raises:
      ValueError: if an argument is out of its range, or (in ``update``) the tree of
        updates does not match the state.
      TypeError: if ``diagonal`` is no transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_kronecker(graft=False, relative_damping=0.)
      >>> grad = jnp.array([[0., 3.], [-0.5, 0.]])
      >>> z, _ = tx.update(grad, tx.init(grad))
      >>> bool(jnp.allclose(z, jnp.array([[0., 1.], [-1., 0.]]), atol=1e-5))
      True
    """
    validation.check_decay("decay", decay)
    validation.check_positive_int("refresh_period", refresh_period)
    validation.check_non_negative("relative_damping", relative_damping)
    validation.check_positive_int("block_size", block_size)
    validation.check_range("1", "one_sided_ratio", 1.0, one_sided_ratio)
    if diagonal is not None:
        validation.check_transformation("diagonal", diagonal)
    transform_diagonal = optax.with_extra_args_support(diagonal or second_moment())
    if not graft:
        transform_diagonal = optax.masked(
            transform_diagonal, vector_mask(weight_dimension_numbers)
        )
    options = _Options(
        decay,
        refresh_period,
        relative_damping,
        block_size,
        one_sided_ratio,
        graft,
        transform_diagonal,
        weight_dimension_numbers,
    )

    def init_fn(params: PyTree) -> ScaleByKroneckerState:
        return _init(options, params)

    def update_fn(
        updates: PyTree,
        state: ScaleByKroneckerState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByKroneckerState]:
        return _update(options, updates, state, params, extra_args)

    return on_arrays(optax.GradientTransformationExtraArgs(init_fn, update_fn))


class _Options(NamedTuple):
    """The arguments of `scale_by_kronecker`, with a transformation for ``diagonal``."""

    decay: Any
    refresh_period: Any
    relative_damping: Any
    block_size: int
    one_sided_ratio: float
    graft: bool
    diagonal: optax.GradientTransformationExtraArgs
    weight_dimension_numbers: Any


def _init(options: _Options, params: PyTree) -> ScaleByKroneckerState:
    accumulator_dtype(params)  # raises where a leaf is not floating point
    wide = jax.tree.map(widened, params)
    leaves, treedef = jax.tree.flatten(wide)

    def nothing_yet(blocks: Blocks | None, leaf: jax.Array) -> list[jax.Array]:
        if blocks is None:
            return []
        place = sharding_of_axes(leaf, blocks.placed_axes)
        return [
            jnp.zeros(shape, leaf.dtype, device=place)
            for shape in blocks.shapes_of_factors(leaf)
        ]

    def zeros() -> KroneckerSides:  # new buffers at every call, as donation needs
        blocks = _blocks_of(options, wide)
        pairs = zip(blocks, leaves, strict=True)
        return _by_side(blocks, [nothing_yet(*pair) for pair in pairs], treedef)

    return ScaleByKroneckerState(
        count=jnp.zeros([], jnp.int32),
        factors=zeros(),
        roots=zeros(),
        diagonal=options.diagonal.init(wide),
        diagnostics=KroneckerDiagnostics(
            num_refreshes=jnp.zeros([], jnp.int32),
            num_root_failures=jnp.zeros([], jnp.int32),
        ),
    )


def _update(
    options: _Options,
    updates: PyTree,
    state: ScaleByKroneckerState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByKroneckerState]:
    wide = jax.tree.map(widened, updates)
    grads, treedef = jax.tree.flatten(wide)
    blocks = _blocks_of(options, wide)
    old_factors, old_roots = _per_leaf(blocks, wide, state)
    finite = all_finite(updates)
    diagonals, diagonal_state = options.diagonal.update(
        wide, state.diagonal, params, **extra_args
    )
    count = state.count + finite.astype(jnp.int32)
    due = is_due(state.count, options.refresh_period, extra_args)

    def matrix_work(
        grads: list[jax.Array | None],
        old_factors: list[list[jax.Array]],
        old_roots: list[list[jax.Array]],
        count: jax.Array,
        finite: jax.Array,
        due: bool | jax.Array,
        decay: Any,
        relative_damping: Any,
    ) -> _MatrixWork:
        own = options._replace(decay=decay, relative_damping=relative_damping)
        return _matrix_work(
            own, blocks, grads, old_factors, old_roots, count, finite, due
        )

    matrices = [
        None if found is None else grad
        for found, grad in zip(blocks, grads, strict=True)
    ]
    # The numbers are arrays of the mesh under `optax.inject_hyperparams`.
    numbers = (options.decay, options.relative_damping)
    done: _MatrixWork = with_auto_axes(
        matrix_work,
        (matrices, old_factors, old_roots, count, finite, due, *numbers),
        like=_MatrixWork(matrices, old_factors, old_roots, count),
    )
    leaves = jax.tree.leaves(diagonals)
    for i, z in enumerate(done.products):
        if z is not None:
            leaves[i] = of_norm(z, leaves[i]) if options.graft else z
    z = optax.tree.cast_like(jax.tree.unflatten(treedef, leaves), updates)
    return z, ScaleByKroneckerState(
        count=count,
        factors=_by_side(blocks, done.factors, treedef),
        roots=_by_side(blocks, done.roots, treedef),
        diagonal=select(finite, diagonal_state, state.diagonal),
        diagnostics=KroneckerDiagnostics(
            num_refreshes=state.diagnostics.num_refreshes
            + (finite & due).astype(jnp.int32),
            num_root_failures=state.diagnostics.num_root_failures + done.failures,
        ),
    )


class _MatrixWork(NamedTuple):
    """What is computed of the matrices, per leaf; None for one that is not a matrix."""

    products: list[jax.Array | None]
    factors: list[list[jax.Array]]
    roots: list[list[jax.Array]]
    failures: jax.Array


def _matrix_work(
    options: _Options,
    blocks: list[Blocks | None],
    grads: list[jax.Array | None],
    old_factors: list[list[jax.Array]],
    old_roots: list[list[jax.Array]],
    count: jax.Array,
    finite: jax.Array,
    due: bool | jax.Array,
) -> _MatrixWork:
    """The averages with this gradient, their roots, and the gradient times these."""
    split = [
        None if found is None or grad is None else found.split(grad)
        for found, grad in zip(blocks, grads, strict=True)
    ]
    factors = _averaged_factors(options, blocks, split, old_factors, finite)
    roots, failures = if_due(
        due,
        lambda: refreshed_roots(
            factors, old_roots, count, options.decay, options.relative_damping, finite
        ),
        lambda: (old_roots, jnp.zeros([], jnp.int32)),
    )
    products = [
        None
        if found is None or cut is None or grad is None
        else found.join(multiplied(cut, of_leaf, found.sides), grad)
        for found, cut, of_leaf, grad in zip(blocks, split, roots, grads, strict=True)
    ]
    return _MatrixWork(products, factors, roots, failures)


def _blocks_of(options: _Options, tree: PyTree) -> list[Blocks | None]:
    """How each leaf is cut into blocks; None for a leaf that is not a matrix."""
    views = matrix_views(tree, options.weight_dimension_numbers)
    return [
        None
        if view is None
        else blocks_for(view, leaf, options.block_size, options.one_sided_ratio)
        for view, leaf in zip(views, jax.tree.leaves(tree), strict=True)
    ]


def _averaged_factors(
    options: _Options,
    blocks: list[Blocks | None],
    split: list[jax.Array | None],
    old_factors: list[list[jax.Array]],
    finite: jax.Array,
) -> list[list[jax.Array]]:
    """The averages with the factors of this gradient, per leaf and per side."""
    return [
        [
            averaged(old, gram(cut, side), options.decay, finite)
            for old, side in zip(old_of_leaf, found.sides, strict=True)
        ]
        if found is not None and cut is not None
        else []
        for found, cut, old_of_leaf in zip(blocks, split, old_factors, strict=True)
    ]


def _by_side(
    blocks: list[Blocks | None], arrays: list[list[jax.Array]], treedef: Any
) -> KroneckerSides:
    """Trees of the arrays that each leaf has, one for each of its sides."""
    by_side = [
        {} if found is None else dict(zip(found.sides, of_leaf, strict=True))
        for found, of_leaf in zip(blocks, arrays, strict=True)
    ]
    return KroneckerSides(
        *(
            jax.tree.unflatten(
                treedef, [sides.get(side, optax.MaskedNode()) for sides in by_side]
            )
            for side in KroneckerSides._fields
        )
    )


def _per_leaf(
    blocks: list[Blocks | None], tree: PyTree, state: ScaleByKroneckerState
) -> tuple[list[list[jax.Array]], list[list[jax.Array]]]:
    """The factors and the roots of every leaf; raises if the tree is another one."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    treedef: Any = jax.tree.structure(tree)

    def of_leaves(sides: KroneckerSides) -> list[list[jax.Array]]:
        both = (treedef.flatten_up_to(side) for side in sides)
        return [jax.tree.leaves(pair) for pair in zip(*both, strict=True)]

    try:
        factors, roots = of_leaves(state.factors), of_leaves(state.roots)
    except ValueError as error:
        raise ValueError(
            f"updates has the tree structure {treedef}, but the state was initialized "
            "for another one"
        ) from error
    for found, (path, leaf), of_leaf in zip(blocks, leaves, factors, strict=True):
        expected = [] if found is None else found.shapes_of_factors(leaf)
        if expected != [factor.shape for factor in of_leaf]:
            raise ValueError(
                f"updates{jax.tree_util.keystr(path)} has shape {leaf.shape}, but the "
                "state was initialized for another one"
            )
    return factors, roots
