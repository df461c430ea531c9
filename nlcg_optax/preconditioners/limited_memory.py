"""Limited-memory BFGS as a preconditioner: the last m secant pairs as the metric."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import (
    PyTree,
    accumulator_dtype,
    difference,
    stored,
    stored_like,
    times,
)
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.inner_products import vdots
from nlcg_optax.trees.split import (
    AxisName,
    axis_of_parameters,
    parameters_split_over,
)
from nlcg_optax.trees.stacked_products import combination, stacked_vdots
from nlcg_optax.wrappers.not_schedules import not_schedules
from nlcg_optax.xla import varying

# n pairs are enough for a quadratic function of n parameters; for others, older pairs
# help a little. In thousands of small fits the (m + 1)² numbers of each T⁻¹ are costly,
# so rows are limited to the next power of two above this many per parameter.
PAIRS_PER_PARAMETER = 4


class LimitedMemoryDiagnostics(NamedTuple):
    """What `scale_by_limited_memory` did, as scalars.

    Attributes:
      num_pairs: secant pairs in the memory.
      num_refused_pairs: pairs refused so far because their curvature is not positive.
      initial_scaling: γ of the initial matrix γ I.
    """

    num_pairs: jax.Array
    num_refused_pairs: jax.Array
    initial_scaling: jax.Array


class ScaleByLimitedMemoryState(NamedTuple):
    """State of `scale_by_limited_memory`.

    Attributes:
      count: number of updates.
      spare: row of the circular memory that holds no pair; the newest is before it.
      steps: the s_i, stacked along a leading axis of length m + 1.
      grad_changes: the y_i, stacked likewise.
      curvatures: ``s_iᵀy_i`` by rows.
      slopes: ``s_iᵀg`` by rows, with the gradient of the last update.
      inverse: T⁻¹ by rows, shape ``(m + 1, m + 1)``; zeros where there is no pair,
        except for old values that `forget_pairs` leaves and that are not used.
      params_prev: previous parameters.
      grad_prev: previous gradient; after one that is not finite no pair is taken.
      diagnostics: what the last update did.
    """

    count: jax.Array  # type: ignore[assignment]
    spare: jax.Array
    steps: PyTree
    grad_changes: PyTree
    curvatures: jax.Array
    slopes: jax.Array
    inverse: jax.Array
    params_prev: PyTree
    grad_prev: PyTree
    diagnostics: LimitedMemoryDiagnostics


@not_schedules(static=("memory",))
def scale_by_limited_memory(
    memory: int = 31,
    *,
    min_cosine: float | jax.Array = 1e-12,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the gradient by the inverse BFGS matrix of the last secant pairs.

    With :math:`s_i` the changes of the parameters, :math:`y_i` those of the gradient,
    oldest first, S and Y the matrices of these columns, T the upper triangle of
    :math:`S^\top Y`, D its diagonal and :math:`\gamma = s^\top y / y^\top y` of the
    newest pair,

    .. math::
        a = T^{-1} S^\top g, \qquad q = \gamma (g - Y a), \qquad
        b = T^{-\top} (D a - Y^\top q), \qquad P g = q + S b.

    This is the two-loop recursion, Nocedal, "Updating quasi-Newton matrices with
    limited storage", Math. Comp. 35, 1980, with each loop as a triangular system, the
    form of Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and
    their use in limited memory methods", Math. Program. 63, 1994: a pass over the
    parameters for all pairs together instead of one per pair. A new pair adds to
    :math:`T^{-1}` the column :math:`(-T^{-1} S^\top y, 1) / s^\top y` with
    :math:`S^\top y = S^\top g - S^\top g_{prev}`; dropping the oldest pair deletes its
    row and column. Until the first pair, P = I. A pair is taken only if
    :math:`s^\top y > \epsilon \|s\| \|y\|`, so that P stays positive definite.

    Nested as the ``preconditioner`` of `scale_by_nlcg` it gives limited-memory NLCG;
    with a β of zero that is L-BFGS.

    Args:
      memory: k, the number of pairs kept. 31 pairs plus one spare row fill whole SIMD
        registers, which compiles to less code. With one parameter at most 7 are kept,
        with two or three 15, with four to seven 31, and so on; older pairs add almost
        nothing.
      min_cosine: the ε above, in [0, 1); with 0 any positive curvature is enough.

    Returns:
      A transformation. Its ``update`` needs ``params``; the pairs come from the
      parameters and gradients of successive calls, which must be of one objective.
      The state holds 2k + 4 copies of the parameters.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, ``params`` is
        missing or the tree of updates does not match the state.
      TypeError: if a leaf is not floating point.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1., 100.]) * x**2)
      >>> tx = scale_by_limited_memory(2)
      >>> state = tx.init(jnp.zeros(2))
      >>> for x in (jnp.array([1., 1.]), jnp.array([2., 1.]), jnp.array([2., 2.])):
      ...     z, state = tx.update(jax.grad(loss)(x), state, x)
      >>> z.round(4)  # two pairs: both curvatures are known, and P g = x
      Array([2., 2.], dtype=float32)
    """
    validation.check_static(memory=memory)
    validation.check_positive_int("memory", memory)
    validation.check_decay("min_cosine", min_cosine)

    options = _Options(int(memory), min_cosine)

    return transformation(options, _init, _update)


class _Options(NamedTuple):
    """The arguments of `scale_by_limited_memory`."""

    memory: int
    min_cosine: Any


class _Pair(NamedTuple):
    """The newest secant pair, and what is decided about it."""

    s: PyTree
    y: PyTree
    s_y: jax.Array
    y_y: jax.Array
    inverse_curvature: jax.Array  # 1 / sᵀy, zero if the pair is refused
    taken: jax.Array


class _Memory(NamedTuple):
    """The pairs including the newest, and T⁻¹ and Sᵀg of the previous update."""

    steps: PyTree
    grad_changes: PyTree
    curvatures: jax.Array
    scaling: jax.Array
    slopes: jax.Array
    inverse: jax.Array
    slot: jax.Array
    spare: jax.Array
    num_pairs: jax.Array
    num_new: jax.Array
    inverse_curvature: jax.Array


def _init(options: _Options, params: PyTree) -> ScaleByLimitedMemoryState:
    acc = accumulator_dtype(params)
    size = max(1, sum(map(jnp.size, jax.tree.leaves(params))))
    rows = min(options.memory + 1, 1 << (PAIRS_PER_PARAMETER * size).bit_length())

    def stack(x: jax.Array) -> jax.Array:
        # Computed from x, so that every row is sharded like it.
        return jnp.broadcast_to(jnp.zeros_like(x), (rows, *jnp.shape(x)))

    return ScaleByLimitedMemoryState(
        count=jnp.zeros([], jnp.int32),
        spare=jnp.zeros([], jnp.int32),
        steps=jax.tree.map(stack, params),
        grad_changes=jax.tree.map(stack, params),
        curvatures=jnp.zeros([rows], acc),
        slopes=jnp.zeros([rows], acc),
        inverse=jnp.zeros([rows, rows], acc),
        params_prev=jax.tree.map(jnp.zeros_like, params),
        grad_prev=jax.tree.map(jnp.zeros_like, params),
        diagnostics=LimitedMemoryDiagnostics(
            num_pairs=jnp.zeros([], jnp.int32),
            num_refused_pairs=jnp.zeros([], jnp.int32),
            initial_scaling=jnp.ones([], acc),
        ),
    )


def _update(
    options: _Options,
    updates: PyTree,
    state: ScaleByLimitedMemoryState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByLimitedMemoryState]:
    validation.check_state("scale_by_limited_memory", state, ScaleByLimitedMemoryState)
    del extra_args
    validation.require(
        "scale_by_limited_memory", "params", params, "for the secant pairs"
    )
    validation.check_same_structure("updates", updates, state.grad_prev)
    validation.check_same_structure("params", params, state.grad_prev)
    given, updates = updates, stored_like(updates, state.grad_prev)
    pair = _newest_pair(options, updates, state, params)
    # The spare row gets the pair, or zeros if it is refused. The row of the oldest
    # pair is the next spare one.
    slot, most = state.spare, state.curvatures.size - 1
    spare = jnp.where(pair.taken, jnp.where(slot < most, slot + 1, 0), slot)
    steps = _write(state.steps, pair.s, slot, pair.taken)
    grad_changes = _write(state.grad_changes, pair.y, slot, pair.taken)
    curvatures = jax.lax.dynamic_update_index_in_dim(
        state.curvatures, jnp.where(pair.taken, pair.s_y, 0), slot, 0
    )
    num_known = jnp.where(state.count > 0, state.diagnostics.num_pairs, 0)
    num_new = pair.taken.astype(jnp.int32)
    num_pairs = jnp.minimum(num_known + num_new, most)
    scaling = jnp.where(
        pair.taken,
        pair.s_y / jnp.where(pair.taken, pair.y_y, 1),
        state.diagnostics.initial_scaling,
    )
    # Lists: JAX treats two dataclasses with equal fields as the same tree (jax 0.10.2),
    # and `_product` would return the one that it was traced with.
    leaves, treedef = jax.tree.flatten(updates)
    memory = _Memory(
        jax.tree.leaves(steps),
        jax.tree.leaves(grad_changes),
        curvatures,
        scaling,
        state.slopes,
        state.inverse,
        slot,
        spare,
        num_pairs,
        num_new,
        pair.inverse_curvature,
    )
    found, slopes, inverse = _product(leaves, memory, axis_name=axis_of_parameters())
    z = stored_like(jax.tree.unflatten(treedef, found), given)
    refused = ~pair.taken & (state.count > 0)
    return z, ScaleByLimitedMemoryState(
        count=optax.safe_increment(state.count),
        spare=spare,
        steps=steps,
        grad_changes=grad_changes,
        curvatures=curvatures,
        slopes=slopes,
        inverse=inverse,
        params_prev=optax.tree.cast_like(params, state.params_prev),
        grad_prev=updates,
        diagnostics=LimitedMemoryDiagnostics(
            num_pairs=num_pairs,
            num_refused_pairs=state.diagnostics.num_refused_pairs
            + refused.astype(jnp.int32),
            initial_scaling=scaling,
        ),
    )


def _newest_pair(
    options: _Options, updates: PyTree, state: ScaleByLimitedMemoryState, params: PyTree
) -> _Pair:
    """The changes of parameters and gradient, and whether they are taken as a pair."""
    acc = state.inverse.dtype
    s = difference(params, state.params_prev)
    y = difference(updates, state.grad_prev)
    s_y, s_s, y_y = vdots([(s, y), (s, s), (y, y)], dtype=acc)
    threshold = jnp.asarray(options.min_cosine).astype(acc)
    curved = s_y > threshold * jnp.sqrt(s_s) * jnp.sqrt(y_y)
    # An entry is at most the norm, so the memory can hold each pair that is taken.
    leaves = jax.tree.leaves(state.grad_prev)
    largest = min((float(jnp.finfo(x.dtype).max) for x in leaves), default=0.0)
    curved &= (jnp.sqrt(s_s) <= largest) & (jnp.sqrt(y_y) <= largest)
    curved &= (y_y > 0) & (state.count > 0)  # y_y may underflow
    # Zero marks a refused pair, so that this one scalar tells whether it is taken.
    inverse_curvature = jnp.where(curved, 1 / jnp.where(curved, s_y, 1), 0)
    return _Pair(s, y, s_y, y_y, inverse_curvature, taken=inverse_curvature > 0)


def _write(stack: PyTree, tree: PyTree, slot: jax.Array, taken: jax.Array) -> PyTree:
    """Writes a tree, or zeros where it is not taken, to a row of the stacks."""

    def write_leaf(rows: jax.Array, new: jax.Array) -> jax.Array:
        row = jnp.where(taken, new.astype(rows.dtype), 0)
        return jax.lax.dynamic_update_index_in_dim(rows, row, slot, 0)

    return jax.tree.map(write_leaf, stack, tree)


def forget_pairs(state: ScaleByLimitedMemoryState) -> ScaleByLimitedMemoryState:
    """Returns the state without its pairs: the next update is like the first, P = I.

    The arrays stay, so nothing is copied: without pairs they are not used, and later
    they are overwritten.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_limited_memory(2)
      >>> state = tx.init(jnp.zeros(2))
      >>> for x in (jnp.array([1., 1.]), jnp.array([2., 1.])):
      ...     _, state = tx.update(2 * x, state, x)
      >>> tx.update(jnp.array([2., 8.]), forget_pairs(state), jnp.array([1., 4.]))[0]
      Array([2., 8.], dtype=float32)
    """
    return state._replace(count=jnp.zeros_like(state.count))


# One program, so that outside of jit the first pair compiles nothing new.
@functools.partial(jax.jit, static_argnames="axis_name", inline=True)
def _product(
    updates: list[jax.Array], memory: _Memory, *, axis_name: AxisName | None
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """P g (g itself without a pair), the slopes and T⁻¹."""

    def multiply() -> tuple[list[jax.Array], jax.Array, jax.Array]:
        steps, grad_changes, curvatures, scaling, *_ = memory
        # No old pair is kept if none was known or there is room for only one.
        rows = jnp.arange(memory.slopes.size, dtype=jnp.int32)
        holds_pair = (rows != memory.spare) & (memory.num_pairs > memory.num_new)
        kept = jnp.where(holds_pair[None] & holds_pair[:, None], memory.inverse, 0)
        slopes = stacked_vdots(steps, updates, count=rows.size)
        inverse, a = _solve(
            kept, slopes, memory.slopes, memory.slot, memory.inverse_curvature
        )
        z = _multiply(updates, a, steps, grad_changes, inverse, curvatures, scaling)
        return z, slopes, inverse

    # The conditional also avoids copies of the memory, see `varying.cond`.
    with parameters_split_over(axis_name):
        return varying.cond(
            memory.num_pairs > 0,
            multiply,
            lambda: (updates, memory.slopes, memory.inverse),
        )


def _solve(
    inverse: jax.Array,
    slopes: jax.Array,
    slopes_prev: jax.Array,
    slot: jax.Array,
    inverse_curvature: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """T⁻¹ with the column of the new pair, zeros if there is none, and T⁻¹ Sᵀg.

    The arguments are T⁻¹ without the new pair, Sᵀg and Sᵀg_prev (whose difference is
    Sᵀy, the column of T except for its own row), the new pair's row, and 1/sᵀy or zero.
    """
    column = _matmul(inverse, slopes - slopes_prev)
    is_new = jnp.arange(slopes.size, dtype=jnp.int32) == slot
    new = inverse_curvature * jnp.where(is_new, 1, -column)
    # A pair refused because it is not finite must leave no trace.
    new = jnp.where(inverse_curvature > 0, new, 0)
    inverse = jax.lax.dynamic_update_index_in_dim(inverse, new, slot, 1)
    return inverse, _matmul(inverse, slopes)


def _multiply(
    g: PyTree,
    a: jax.Array,
    steps: PyTree,
    grad_changes: PyTree,
    inverse: jax.Array,
    curvatures: jax.Array,
    scaling: jax.Array,
) -> PyTree:
    """Computes P g from the stacked pairs and a = T⁻¹ Sᵀg."""

    def initial(g_: jax.Array, y_a: jax.Array) -> jax.Array:
        return times(scaling, g_.astype(y_a.dtype) - y_a)

    q = jax.tree.map(initial, g, combination(a, grad_changes))
    y_q = stacked_vdots(grad_changes, q, count=a.size)
    b = _matmul(inverse.T, curvatures * a - y_q)
    return jax.tree.map(
        lambda q_, s_b, g_: stored(q_ + s_b, g_.dtype), q, combination(b, steps), g
    )


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)
