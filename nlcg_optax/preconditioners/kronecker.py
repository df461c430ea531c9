"""Kronecker-factored second moments: Shampoo's preconditioner, without momentum."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.curvature.refresh import if_due, is_due
from nlcg_optax.dtypes import PyTree, accumulator_dtype, select, stored_like
from nlcg_optax.preconditioners.kronecker_factors import (
    Blocks,
    averaged_factors,
    blocks_for,
    multiplied,
    refreshed_roots,
)
from nlcg_optax.preconditioners.matrices import (
    all_finite,
    matrix_views,
    of_norm,
    second_moment,
    vector_mask,
    widened,
)
from nlcg_optax.preconditioners.nested import for_leaves, with_sign_checked
from nlcg_optax.transformation import transformation
from nlcg_optax.wrappers.not_schedules import not_schedules
from nlcg_optax.xla.automatic_sharding import with_automatic_sharding
from nlcg_optax.xla.varying import varying_with


class KroneckerDiagnostics(NamedTuple):
    """What `scale_by_kronecker` did, as scalars.

    Attributes:
      num_refreshes: refreshes of the inverse roots so far.
      num_root_failures: non-finite roots refused so far, counted per factor of a
        matrix.
    """

    num_refreshes: jax.Array
    num_root_failures: jax.Array


class Sides(NamedTuple):
    """Factors or roots for the rows and the columns of each matrix.

    Both are trees like the parameters. A matrix becomes an array ``[matrix in the leaf,
    row block, column block, size, size]``. A vector, or a side without a factor,
    becomes an ``optax.MaskedNode``.

    Attributes:
      rows: tree for the rows.
      columns: tree for the columns.
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
    factors: Sides
    roots: Sides
    diagonal: PyTree
    diagnostics: KroneckerDiagnostics


@not_schedules("weight_dimension_numbers", static=("block_size", "one_sided_ratio"))
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
    the grafting of Anil et al. (2020). Momentum is left to β: nest this transformation
    as ``preconditioner`` of `scale_by_nlcg`.

    - The inverse roots come from eigendecompositions every ``refresh_period`` steps,
      the first step included.
    - A side of more than ``block_size`` is cut into equal blocks (the last one padded
      with zeros), each with its own factors.
    - If one side is more than ``one_sided_ratio`` times the other, only the shorter
      one has a factor, with the power :math:`-1/2`.
    - Leaves that are not matrices go through ``diagonal``. With ``graft=True`` matrices
      do so too, and each takes the norm of that result: the direction comes from the
      factors, the length from the diagonal method.

    Factors and roots are kept in float32 or wider.

    Args:
      decay: decay of the averages, in [0, 1).
      refresh_period: steps between two refreshes of the roots. The extra argument
        ``refresh=True`` or ``refresh=False`` of ``update`` replaces the period. Until
        the first refresh the roots are the identity.
      relative_damping: the :math:`\epsilon` above, a multiple of the largest
        eigenvalue.
      block_size: largest side of a factor.
      one_sided_ratio: ratio of the sides beyond which the longer one has no factor;
        at least one.
      graft: whether matrices take their norms from ``diagonal``. Without it the length
        of P G does not depend on that of G when both factors have converged.
      diagonal: an Optax transformation :math:`g \mapsto P g`, without a learning rate
        and its sign; by default the root mean square of Adam, ``optax.scale_by_rms``
        with decay 0.999. ``num_vector_ascents`` of the diagnostics counts updates at
        which it turns the leaves that are not matrices uphill; outside of ``jit``
        there is also a warning if that happens at the first.
      weight_dimension_numbers: see `scale_by_orthogonalization`.

    Returns:
      A transformation that also works alone. A non-finite gradient leaves the state
      unchanged; non-finite roots are refused and counted.

    Under ``jit`` with shardings, a side without a factor is only summed over. A side
    with a factor must be multiplied by the whole factor; if that side is split over
    devices, the matrix is gathered, unless blocks and shards coincide.

    Raises:
      ValueError: if an argument is out of its range, or (in ``update``) the tree of
        updates does not match the state.
      TypeError: if ``diagonal`` is not a transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_kronecker(graft=False, relative_damping=0.)
      >>> grad = jnp.array([[0., 3.], [-0.5, 0.]])
      >>> z, _ = tx.update(grad, tx.init(grad))
      >>> bool(jnp.allclose(z, jnp.array([[0., 1.], [-1., 0.]]), atol=1e-5))
      True
    """
    validation.check_static(
        block_size=block_size, one_sided_ratio=one_sided_ratio, graft=graft
    )
    validation.check_bool("graft", graft)
    validation.check_decay("decay", decay)
    validation.check_positive_int("refresh_period", refresh_period)
    validation.check_non_negative("relative_damping", relative_damping)
    validation.check_positive_int("block_size", block_size)
    validation.check_at_least("one_sided_ratio", one_sided_ratio, 1.0)
    if diagonal is not None:
        validation.check_transformation("diagonal", diagonal)
    are_vectors = vector_mask(weight_dimension_numbers)
    if diagonal is None:
        transform_diagonal = optax.with_extra_args_support(second_moment())
    else:
        mask = are_vectors if graft else None
        transform_diagonal = with_sign_checked("diagonal", diagonal, mask)
    if not graft:
        transform_diagonal = for_leaves(transform_diagonal, are_vectors)
    options = _Options(
        decay,
        refresh_period,
        relative_damping,
        int(block_size),
        float(one_sided_ratio),
        graft,
        transform_diagonal,
        weight_dimension_numbers,
    )

    return transformation(options, _init, _update)


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


_Block: TypeAlias = Callable[..., jax.Array]


def _init(options: _Options, params: PyTree) -> ScaleByKroneckerState:
    accumulator_dtype(params)  # raises where a leaf is not floating point
    wide = jax.tree.map(widened, params)
    leaves, treedef = jax.tree.flatten(wide)

    def sides_of(
        blocks: Blocks | None, leaf: jax.Array, block: _Block
    ) -> list[jax.Array]:
        if blocks is None:
            return []
        # Without a mesh: one with explicit axes would refuse the reshape.
        unplaced = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        shape = jax.eval_shape(blocks.split, unplaced).shape
        sizes = [getattr(blocks, side) for side in blocks.sides]
        filled = [
            jnp.broadcast_to(block(size, dtype=leaf.dtype), (*shape[:3], size, size))
            for size in sizes
        ]
        return varying_with(filled, leaf)

    blocks = _blocks_of(options, wide)

    def filled(block: _Block) -> Sides:
        pairs = zip(blocks, leaves, strict=True)
        return _as_trees(blocks, treedef, [sides_of(*pair, block) for pair in pairs])

    return ScaleByKroneckerState(
        count=jnp.zeros([], jnp.int32),
        factors=filled(jnp.zeros),
        roots=filled(jnp.eye),
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
    validation.check_state("scale_by_kronecker", state, ScaleByKroneckerState)
    wide = jax.tree.map(widened, updates)
    grads, treedef = jax.tree.flatten(wide)
    blocks = _blocks_of(options, wide)
    old_factors, old_roots = _per_leaf(blocks, wide, state)
    # The state is made from the parameters, whose dtypes may have another width.
    grads = [
        grad.astype(factors[0].dtype) if factors else grad
        for grad, factors in zip(grads, old_factors, strict=True)
    ]
    # The factors average sums of products of two entries, which overflow first; no sum
    # and no eigenvalue is larger than the largest square times the number of entries.
    finite = all_finite(jax.tree.map(lambda x: x * x * float(x.size), wide))
    diagonals, diagonal_state = options.diagonal.update(
        wide, state.diagonal, params, **extra_args
    )
    count = jnp.where(finite, optax.safe_increment(state.count), state.count)
    due = is_due(state.count, options.refresh_period, extra_args)

    def multiply(arrays: Any, numbers: _Numbers) -> Any:
        grads, factors, old_roots = arrays
        split = [
            None if found is None else found.split(grad)
            for found, grad in zip(blocks, grads, strict=True)
        ]
        factors = averaged_factors(
            blocks, split, factors, numbers.decay, numbers.finite
        )
        roots, failures = if_due(
            numbers.due,
            lambda: refreshed_roots(
                factors,
                old_roots,
                numbers.count,
                numbers.decay,
                numbers.relative_damping,
                numbers.finite,
            ),
            lambda: (old_roots, jnp.zeros([], jnp.int32)),
        )
        products = [
            grad
            if found is None or cut is None
            else found.join(multiplied(cut, root, found.sides), grad)
            for found, cut, root, grad in zip(blocks, split, roots, grads, strict=True)
        ]
        return (products, factors, roots), failures

    numbers = _Numbers(finite, count, due, options.decay, options.relative_damping)
    (products, factors, roots), failures = with_automatic_sharding(
        multiply, (grads, old_factors, old_roots), numbers
    )
    leaves = jax.tree.leaves(diagonals)
    for i, found in enumerate(blocks):
        if found is not None:
            z = products[i]
            leaves[i] = of_norm(z, leaves[i]) if options.graft else z
    z = stored_like(jax.tree.unflatten(treedef, leaves), updates)
    return z, ScaleByKroneckerState(
        count=count,
        factors=_as_trees(blocks, treedef, factors),
        roots=_as_trees(blocks, treedef, roots),
        diagonal=select(finite, diagonal_state, state.diagonal),
        diagnostics=KroneckerDiagnostics(
            num_refreshes=state.diagnostics.num_refreshes
            + (finite & due).astype(jnp.int32),
            num_root_failures=state.diagnostics.num_root_failures + failures,
        ),
    )


def _blocks_of(options: _Options, tree: PyTree) -> list[Blocks | None]:
    """How each leaf is cut into blocks; None for a leaf that is not a matrix."""
    views = matrix_views(tree, options.weight_dimension_numbers)
    return [
        None
        if view is None
        else blocks_for(view, leaf, options.block_size, options.one_sided_ratio)
        for view, leaf in zip(views, jax.tree.leaves(tree), strict=True)
    ]


class _Numbers(NamedTuple):
    """The scalars of an update."""

    finite: jax.Array
    count: jax.Array  # type: ignore[assignment]
    due: bool | jax.Array
    decay: Any
    relative_damping: Any


def _as_trees(
    blocks: list[Blocks | None], treedef: Any, of_leaves: list[list[jax.Array]]
) -> Sides:
    """One tree per side, from one list per leaf of the arrays of its sides."""
    by_name = [
        dict(zip(found.sides, of_leaf, strict=True)) if found is not None else {}
        for found, of_leaf in zip(blocks, of_leaves, strict=True)
    ]
    return Sides(
        *(
            treedef.unflatten([x.get(side, optax.MaskedNode()) for x in by_name])
            for side in Sides._fields
        )
    )


def _per_leaf(
    blocks: list[Blocks | None], tree: PyTree, state: ScaleByKroneckerState
) -> tuple[list[list[jax.Array]], list[list[jax.Array]]]:
    """Factors and roots of every leaf; raises if the tree does not match the state."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    treedef: Any = jax.tree.structure(tree)
    try:
        factors, roots = (
            list(zip(*map(treedef.flatten_up_to, sides), strict=True))
            for sides in (state.factors, state.roots)
        )
    except ValueError as error:
        raise ValueError(
            f"updates has the tree structure {treedef}, but the state was initialized "
            "for another one"
        ) from error
    for found, (path, leaf), of_leaf in zip(blocks, leaves, factors, strict=True):
        sizes = [getattr(x, "shape", [None])[-1] for x in of_leaf]
        if sizes != [
            getattr(found, side) if found is not None and side in found.sides else None
            for side in Sides._fields
        ]:
            raise ValueError(
                f"updates{jax.tree_util.keystr(path)} has shape {leaf.shape}, but the "
                "state was initialized for another one, or with another block_size or "
                "one_sided_ratio"
            )
    return _present(factors), _present(roots)


def _present(of_leaves: list[tuple[Any, ...]]) -> list[list[jax.Array]]:
    """The arrays of each leaf, without the masked nodes."""
    return [
        [x for x in pair if not isinstance(x, optax.MaskedNode)] for pair in of_leaves
    ]
