"""Limited-memory BFGS as a preconditioner: the last m secant pairs as the metric."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, accumulator_dtype, compute_dtype, difference
from nlcg_optax.inner_products import stacked_vdots, vdots


class LimitedMemoryDiagnostics(NamedTuple):
    """What `scale_by_limited_memory` did, as scalars.

    Attributes:
      num_pairs: secant pairs in the memory, at most m.
      num_refused_pairs: pairs refused so far for want of positive curvature.
      initial_scaling: γ of the initial matrix γ I.
    """

    num_pairs: jax.Array
    num_refused_pairs: jax.Array
    initial_scaling: jax.Array


class ScaleByLimitedMemoryState(NamedTuple):
    """State of `scale_by_limited_memory`.

    Attributes:
      count: number of updates.
      newest: slot of the newest pair in the circular memory.
      steps: the s_i, stacked along a leading axis of length m.
      grad_changes: the y_i, stacked likewise.
      products: ``s_iᵀy_j`` by slots, shape ``(m, m)``, where i is not newer than j.
      params_prev: previous parameters.
      grad_prev: previous gradient.
      diagnostics: what the last update did.
    """

    count: jax.Array  # type: ignore[assignment]
    newest: jax.Array
    steps: PyTree
    grad_changes: PyTree
    products: jax.Array
    params_prev: PyTree
    grad_prev: PyTree
    diagnostics: LimitedMemoryDiagnostics


def scale_by_limited_memory(
    memory: int = 30,
    *,
    min_curvature: float | jax.Array = 1e-12,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the gradient by the inverse BFGS matrix of the last secant pairs.

    With :math:`s_i` the changes of the parameters, :math:`y_i` those of the gradient,
    oldest first, S and Y the matrices of these columns, R the upper triangle of
    :math:`S^\top Y`, D its diagonal and :math:`\gamma = s^\top y / y^\top y` of the
    newest pair,

    .. math::
        R a = S^\top g, \qquad q = \gamma (g - Y a), \qquad
        R^\top b = D a - Y^\top q, \qquad P g = q + S b.

    This is the two-loop recursion, Nocedal, "Updating quasi-Newton matrices with
    limited storage", Math. Comp. 35, 1980, with each loop as a triangular system, the
    form of Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and
    their use in limited memory methods", Math. Program. 63, 1994: a pass over the
    parameters for all pairs together instead of one for each. Until the first pair,
    P = I. A pair is taken only if :math:`s^\top y > \epsilon \|s\| \|y\|`, so that P
    stays positive definite.

    Nested as the ``preconditioner`` of `scale_by_nlcg` it gives limited-memory NLCG;
    with a β of zero that is L-BFGS.

    Args:
      memory: m, how many pairs are kept.
      min_curvature: the ε above. With 0 any positive curvature will do.
      axis_name: see `scale_by_nlcg`.

    Returns:
      A transformation. Its ``update`` needs ``params``; the pairs come from the
      parameters and gradients of successive calls, which must be of one objective.
      The state holds 2m + 2 copies of the parameters.

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
    validation.check_positive_int("memory", memory)
    validation.check_non_negative("min_curvature", min_curvature)

    def init_fn(params: PyTree) -> ScaleByLimitedMemoryState:
        acc = accumulator_dtype(params)

        def stack(x: jax.Array) -> jax.Array:
            # Made of x, so that every row is sharded like it.
            return jnp.broadcast_to(jnp.zeros_like(x), (memory, *jnp.shape(x)))

        return ScaleByLimitedMemoryState(
            count=jnp.zeros([], jnp.int32),
            newest=jnp.zeros([], jnp.int32),
            steps=jax.tree.map(stack, params),
            grad_changes=jax.tree.map(stack, params),
            products=jnp.zeros([memory, memory], acc),
            params_prev=jax.tree.map(jnp.zeros_like, params),
            grad_prev=jax.tree.map(jnp.zeros_like, params),
            diagnostics=LimitedMemoryDiagnostics(
                num_pairs=jnp.zeros([], jnp.int32),
                num_refused_pairs=jnp.zeros([], jnp.int32),
                initial_scaling=jnp.ones([], acc),
            ),
        )

    def update_fn(
        updates: PyTree,
        state: ScaleByLimitedMemoryState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByLimitedMemoryState]:
        del extra_args
        validation.require(
            "scale_by_limited_memory", "params", params, "for the secant pairs"
        )
        validation.check_same_structure("updates", updates, state.grad_prev)
        acc = state.products.dtype
        s = difference(params, state.params_prev)
        y = difference(updates, state.grad_prev)
        s_y, s_s, y_y = vdots([(s, y), (s, s), (y, y)], axis_name=axis_name, dtype=acc)
        threshold = jnp.asarray(min_curvature).astype(acc)
        curved = s_y > threshold * jnp.sqrt(s_s) * jnp.sqrt(y_y)
        curved &= jnp.isfinite(s_s) & jnp.isfinite(y_y)
        taken = curved & (state.count > 0)
        refused = ~curved & (state.count > 0)

        slot = jnp.where(taken, (state.newest + 1) % memory, state.newest)

        def write(stack: PyTree, tree: PyTree) -> PyTree:
            # The old row is written back where the pair is refused: one row moves,
            # not the whole memory.
            def write_leaf(rows: jax.Array, new: jax.Array) -> jax.Array:
                old = jax.lax.dynamic_index_in_dim(rows, slot, keepdims=False)
                row = jnp.where(taken, new.astype(rows.dtype), old)
                return jax.lax.dynamic_update_index_in_dim(rows, row, slot, 0)

            return jax.tree.map(write_leaf, stack, tree)

        steps, grad_changes = write(state.steps, s), write(state.grad_changes, y)
        column = stacked_vdots(steps, y, axis_name=axis_name).astype(acc)
        is_slot = jnp.arange(memory) == slot
        products = jnp.where(is_slot[:, None], 0, state.products)
        products = jnp.where(is_slot[None, :], column[:, None], products)
        products = jnp.where(taken, products, state.products)
        num_pairs = jnp.minimum(
            state.diagnostics.num_pairs + taken.astype(jnp.int32), memory
        )
        scaling = jnp.where(
            taken, s_y / jnp.where(taken, y_y, 1), state.diagnostics.initial_scaling
        )

        z = _multiply(updates, steps, grad_changes, products, slot, scaling, axis_name)
        new_state = ScaleByLimitedMemoryState(
            count=optax.safe_increment(state.count),
            newest=slot,
            steps=steps,
            grad_changes=grad_changes,
            products=products,
            params_prev=optax.tree.cast_like(params, state.params_prev),
            grad_prev=optax.tree.cast_like(updates, state.grad_prev),
            diagnostics=LimitedMemoryDiagnostics(
                num_pairs=num_pairs,
                num_refused_pairs=state.diagnostics.num_refused_pairs
                + refused.astype(jnp.int32),
                initial_scaling=scaling,
            ),
        )
        return z, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _multiply(
    g: PyTree,
    steps: PyTree,
    grad_changes: PyTree,
    products: jax.Array,
    newest: jax.Array,
    scaling: jax.Array,
    axis_name: str | tuple[str, ...] | None,
) -> PyTree:
    """Computes P g from the stacked pairs."""
    memory = products.shape[0]
    oldest_first = (newest + 1 + jnp.arange(memory)) % memory
    upper = jnp.triu(products[oldest_first][:, oldest_first])
    diagonal = jnp.diagonal(upper)
    # An empty slot is a pair of zeros: its row and column are those of the identity.
    upper += jnp.diag(jnp.where(diagonal > 0, 0, 1).astype(upper.dtype))

    def in_order(by_slot: jax.Array) -> jax.Array:
        return by_slot[oldest_first]

    def by_slot(in_order_: jax.Array) -> jax.Array:
        # The inverse permutation; a scatter would become a loop on the CPU.
        return in_order_[(jnp.arange(memory) - newest - 1) % memory]

    def combine(coefficients: jax.Array, stack: jax.Array, leaf: jax.Array) -> Any:
        dtype = compute_dtype(leaf.dtype)
        return jnp.tensordot(
            coefficients.astype(dtype),
            stack.astype(dtype),
            axes=1,
            precision=jax.lax.Precision.HIGHEST,
        )

    s_g = in_order(stacked_vdots(steps, g, axis_name=axis_name))
    a = jax.scipy.linalg.solve_triangular(upper, s_g)
    a_slots = by_slot(a)

    def initial(g_: jax.Array, rows: jax.Array) -> jax.Array:
        dtype = compute_dtype(g_.dtype)
        rest = g_.astype(dtype) - combine(a_slots, rows, g_)
        return scaling.astype(dtype) * rest

    q = jax.tree.map(initial, g, grad_changes)
    y_q = in_order(stacked_vdots(grad_changes, q, axis_name=axis_name))
    b = jax.scipy.linalg.solve_triangular(upper, diagonal * a - y_q, trans="T")
    b_slots = by_slot(b)
    return jax.tree.map(
        lambda q_, rows, g_: (q_ + combine(b_slots, rows, q_)).astype(g_.dtype),
        q,
        steps,
        g,
    )
