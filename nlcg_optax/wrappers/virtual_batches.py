"""Virtual batches: one NLCG step from several micro-batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import (
    PyTree,
    accumulator_dtype,
    compute_dtype,
    strong_types,
    times,
)
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.split import on_any_part
from nlcg_optax.xla.control_flow import cond


class VirtualBatchDiagnostics(NamedTuple):
    """What `virtual_batch` did, as scalars.

    Attributes:
      num_micro_batch_skips: micro-batches left out so far because their gradient or
        loss was not finite.
    """

    num_micro_batch_skips: jax.Array


class VirtualBatchState(NamedTuple):
    """State of `virtual_batch`.

    Attributes:
      count: number of steps.
      micro_step: micro-batches averaged since the last step.
      mean_grad: mean gradient over them, in float32 or wider.
      mean_value: mean loss over them.
      inner_state: state of the transformation inside.
      diagnostics: what was left out.
    """

    count: jax.Array  # type: ignore[assignment]
    micro_step: jax.Array
    mean_grad: PyTree
    mean_value: jax.Array
    inner_state: PyTree
    diagnostics: VirtualBatchDiagnostics


def virtual_batch(
    tx: optax.GradientTransformation, micro_batches: int
) -> optax.GradientTransformationExtraArgs:
    r"""Averages gradients *and losses* over micro-batches, then takes one step.

    .. math::
        g = \frac{1}{k} \sum_{i=1}^{k} g_i, \qquad
        \mathrm{value} = \frac{1}{k} \sum_{i=1}^{k} \mathrm{value}_i

    ``optax.MultiSteps`` instead gives ``tx`` the loss (and, for a line search, the
    gradient) of the last micro-batch only, runs ``tx`` at every micro-step, and by
    default averages NaN in. Here a micro-batch with a non-finite gradient or loss is
    left out, as if it had not been drawn, and ``tx`` runs once per step. The other
    micro-steps give zero updates. Source: arXiv 1812.02886, section on virtual
    batching.

    Args:
      tx: any Optax transformation.
      micro_batches: number of micro-batches per step.

    Returns:
      A transformation whose ``update`` takes the extra arguments ``value`` and
      ``grad`` (both optional). ``tx`` gets the average of the values and, as ``grad``,
      that of the updates, which must therefore be gradients: nothing may change them
      before. All others pass unmodified, so a ``value_fn`` should be the loss of the
      whole virtual batch.

    Raises:
      ValueError: if ``micro_batches`` is not an integer of at least 1.
      TypeError: if ``tx`` is not a transformation.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> tx = virtual_batch(optax.sgd(1.), micro_batches=2)
      >>> params = jnp.zeros(1)
      >>> state = tx.init(params)
      >>> for grad in (jnp.array([1.]), jnp.array([3.])):
      ...     updates, state = tx.update(grad, state, params, value=0.)
      >>> updates
      Array([-2.], dtype=float32)
    """
    validation.check_transformation("tx", tx)
    validation.check_positive_int("micro_batches", micro_batches)
    options = _Options(optax.with_extra_args_support(tx), micro_batches)
    return transformation(options, _init, _update)


class _Options(NamedTuple):
    """The arguments of `virtual_batch`."""

    inner: optax.GradientTransformationExtraArgs
    micro_batches: int


def _init(options: _Options, params: PyTree) -> VirtualBatchState:
    return VirtualBatchState(
        count=jnp.zeros([], jnp.int32),
        micro_step=jnp.zeros([], jnp.int32),
        mean_grad=jax.tree.map(
            lambda p: jnp.zeros_like(p, dtype=compute_dtype(p.dtype)), params
        ),
        mean_value=jnp.zeros([], accumulator_dtype(params)),
        inner_state=strong_types(options.inner.init(params)),
        diagnostics=VirtualBatchDiagnostics(
            num_micro_batch_skips=jnp.zeros([], jnp.int32)
        ),
    )


def _update(
    options: _Options,
    updates: PyTree,
    state: VirtualBatchState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, VirtualBatchState]:
    validation.check_state("virtual_batch", state, VirtualBatchState)
    validation.check_same_structure("updates", updates, state.mean_grad)
    refused, _ = optax.skip_not_finite(updates, state.count, params)
    refused = on_any_part(refused)  # all devices take the step, or none
    value = extra_args.get("value")
    mean_value = state.mean_value
    if value is not None:
        value = jnp.asarray(value)
        validation.check_scalar_loss("virtual_batch", value)
        refused |= ~jnp.isfinite(value)
        mean_value = _averaged(mean_value, value, state.micro_step, refused)
        is_float = jnp.issubdtype(value.dtype, jnp.inexact)
        mean = mean_value.astype(value.dtype) if is_float else mean_value
        extra_args = {**extra_args, "value": mean}  # need not be an integer
    mean_grad = jax.tree.map(
        lambda mean, g: _averaged(mean, g, state.micro_step, refused),
        state.mean_grad,
        updates,
    )

    def step() -> tuple[PyTree, PyTree]:
        grad = optax.tree.cast_like(mean_grad, updates)
        given = extra_args
        if "grad" in extra_args:
            # As jax.grad gives it: the conjugate of the steepest ascent.
            given = {**extra_args, "grad": jax.tree.map(jnp.conj, grad)}
        result: tuple[PyTree, PyTree] = options.inner.update(
            grad, state.inner_state, params, **given
        )
        return strong_types(result)

    def wait() -> tuple[PyTree, PyTree]:
        shapes, _ = jax.eval_shape(step)
        zeros = jax.tree.map(
            lambda u, s: jnp.zeros_like(u, dtype=s.dtype), updates, shapes
        )
        return zeros, state.inner_state

    micro_step = state.micro_step + (~refused).astype(jnp.int32)
    due = micro_step == options.micro_batches
    new_updates, inner_state = cond(due, step, wait)
    skips = state.diagnostics.num_micro_batch_skips + refused.astype(jnp.int32)
    return new_updates, VirtualBatchState(
        count=jnp.where(due, optax.safe_increment(state.count), state.count),
        micro_step=jnp.where(due, 0, micro_step),
        mean_grad=jax.tree.map(lambda g: jnp.where(due, 0, g), mean_grad),
        mean_value=jnp.where(due, 0, mean_value),
        inner_state=inner_state,
        diagnostics=VirtualBatchDiagnostics(num_micro_batch_skips=skips),
    )


def _averaged(
    mean: jax.Array, new: jax.Array, count: jax.Array, refused: jax.Array
) -> jax.Array:
    """The mean including one more number; the old mean if it is refused."""
    weight = 1 / (count + 1).astype(jnp.finfo(mean.dtype).dtype)
    change = times(weight, new.astype(mean.dtype) - mean)
    return jnp.where(refused, mean, mean + change)
