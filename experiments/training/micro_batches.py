"""Virtual batches: one step on the mean loss and gradient of several micro-batches.

A loss function is called as ``loss_fn(params, batch_stats, batch)`` and returns the
loss and a triple: the updated batch statistics, the loss of the labels alone and the
accuracy. Micro-batches are stacked along the first axis. Batch normalization uses one
micro-batch at a time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
LossFn = Callable[
    [PyTree, PyTree, PyTree], tuple[jax.Array, tuple[PyTree, jax.Array, jax.Array]]
]
OutputsFn = Callable[[PyTree, PyTree, PyTree], jax.Array]


# JAX 0.9 renamed it.
_pcast = getattr(jax.lax, "pcast", None)


class Outcome(NamedTuple):
    """Means over micro-batches.

    Attributes:
      loss: mean loss.
      label_loss: mean loss of the labels, without smoothing and the L2 term.
      accuracy: mean accuracy.
      grads: mean gradient.
    """

    loss: jax.Array
    label_loss: jax.Array
    accuracy: jax.Array
    grads: PyTree


def mean_gradient(
    loss_fn: LossFn,
    params: PyTree,
    batch_stats: PyTree,
    batches: PyTree,
    *,
    unroll: bool = False,
    varying_over: tuple[str, ...] = (),
) -> tuple[Outcome, PyTree]:
    """Computes the mean gradient in the memory of one micro-batch.

    Args:
      loss_fn: see above.
      params: the weights.
      batch_stats: batch statistics before the first micro-batch.
      batches: micro-batches.
      unroll: whether to unroll the loop over micro-batches, for CPUs, where
        convolutions in XLA loops are slow.
      varying_over: inside `jax.shard_map`, the axes over which the examples are split
        and ``params`` and ``batch_stats`` are marked as varying.

    Returns:
      The means, and the statistics after the last micro-batch.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def outcome_of(batch_stats: PyTree, batch: PyTree) -> tuple[Outcome, PyTree]:
        (loss, (batch_stats, label_loss, accuracy)), grads = value_and_grad(
            params, batch_stats, batch
        )
        return Outcome(loss, label_loss, accuracy, grads), batch_stats

    count = _count(batches)
    if count == 1:
        return outcome_of(batch_stats, _part(batches, 0))

    def add(
        carry: tuple[Outcome, PyTree], batch: PyTree
    ) -> tuple[tuple[Outcome, PyTree], None]:
        total, batch_stats = carry
        outcome, batch_stats = outcome_of(batch_stats, batch)
        return (jax.tree.map(jnp.add, total, outcome), batch_stats), None

    nothing = varying(jnp.zeros([], jnp.float32), varying_over)
    zero = Outcome(nothing, nothing, nothing, jax.tree.map(jnp.zeros_like, params))
    carry = (zero, batch_stats)
    if unroll:
        for row in range(count):
            carry, _ = add(carry, _part(batches, row))
    else:
        carry, _ = jax.lax.scan(add, carry, batches)
    total, batch_stats = carry
    return jax.tree.map(lambda leaf: leaf / count, total), batch_stats


def mean_loss(
    loss_fn: LossFn, params: PyTree, batch_stats: PyTree, batches: PyTree
) -> jax.Array:
    """The loss of the virtual batch; its derivatives need the memory of one part."""

    def loss_of(batch: PyTree) -> jax.Array:
        return loss_fn(params, batch_stats, batch)[0]

    part_loss = loss_of if _count(batches) == 1 else jax.checkpoint(loss_of)
    return jnp.mean(_map_parts(part_loss, batches))


def half_gradients(
    gradient: Callable[..., tuple[Outcome, PyTree]],
    loss_fn: LossFn,
    params: PyTree,
    batch_stats: PyTree,
    batches: PyTree,
) -> tuple[Outcome, tuple[PyTree, PyTree], PyTree]:
    """The gradients of the two halves of the virtual batch, in addition to its own.

    Args:
      gradient: a function such as `mean_gradient`.
      loss_fn: as for `mean_gradient`, like the following arguments.
      params: the weights.
      batch_stats: batch statistics before the first micro-batch.
      batches: micro-batches.

    Returns:
      The means, the pair of gradients, and the statistics after the last micro-batch.

    Raises:
      ValueError: if the number of micro-batches is odd.
    """
    count = _count(batches)
    if count % 2:
        raise ValueError(
            f"micro_batches={count} must be even, for the gradients of two halves"
        )
    outcomes = []
    for half in (slice(0, count // 2), slice(count // 2, count)):
        part = jax.tree.map(lambda leaf, half=half: leaf[half], batches)
        outcome, batch_stats = gradient(loss_fn, params, batch_stats, part)
        outcomes.append(outcome)
    first, second = outcomes
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    return mean, (first.grads, second.grads), batch_stats


def stacked_outputs(
    outputs_fn: OutputsFn, params: PyTree, batch_stats: PyTree, batches: PyTree
) -> jax.Array:
    """The model's outputs for each micro-batch, computed in turn and stacked."""

    def outputs_of(batch: PyTree) -> jax.Array:
        return outputs_fn(params, batch_stats, batch)

    if _count(batches) == 1:
        return outputs_of(_part(batches, 0))[None]
    return jax.lax.map(jax.checkpoint(outputs_of), batches)


def varying(tree: PyTree, axes: tuple[str, ...]) -> PyTree:
    """Marks arrays as varying over devices inside `jax.shard_map`."""
    if not axes:
        return tree
    if _pcast is None:
        return getattr(jax.lax, "pvary")(tree, axes)  # noqa: B009
    return jax.tree.map(lambda leaf: _pcast(leaf, axes, to="varying"), tree)


def _map_parts(function: Callable[[PyTree], jax.Array], batches: PyTree) -> jax.Array:
    """The results for all micro-batches, stacked."""
    count = _count(batches)
    if count == 1 or _unrolls():
        return jnp.stack([function(_part(batches, row)) for row in range(count)])
    return jax.lax.map(function, batches)


def _unrolls() -> bool:
    """Whether to avoid loops: on CPUs, convolutions in XLA loops are slow."""
    return jax.default_backend() == "cpu"


def _count(batches: PyTree) -> int:
    return int(jax.tree.leaves(batches)[0].shape[0])


def _part(batches: PyTree, row: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[row], batches)
