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
)
from nlcg_optax.xla.control_flow import cond


class VirtualBatchState(NamedTuple):
    """State of `virtual_batch`.

    Attributes:
      multi_steps: micro-batches and steps so far, the state of the inner transformation
        and the mean gradient, in the layout of ``optax.MultiSteps``.
      mean_value: mean loss over the micro-batches since the last step.
    """

    multi_steps: optax.MultiStepsState
    mean_value: jax.Array


def virtual_batch(
    tx: optax.GradientTransformation, micro_batches: int
) -> optax.GradientTransformationExtraArgs:
    r"""Averages gradients *and losses* over micro-batches, then takes one step.

    .. math::
        g = \frac{1}{k} \sum_{i=1}^{k} g_i, \qquad
        \mathrm{value} = \frac{1}{k} \sum_{i=1}^{k} \mathrm{value}_i

    ``optax.MultiSteps`` would pass on the loss (and, for a line search, the gradient)
    of the last micro-batch, would run ``tx`` at every micro-step, and would keep a NaN
    of one micro-batch in every later step. Here a micro-batch with a gradient or loss
    that is not finite is left out, as if it had not been drawn. All but the last
    micro-step of a step give zero updates.
    Source: arXiv 1812.02886, section on virtual batching.

    Args:
      tx: any Optax transformation.
      micro_batches: number of micro-batches per step.

    Returns:
      A transformation whose ``update`` takes the extra arguments ``value`` and
      ``grad`` (both optional) and passes their averages on to ``tx``; all others are
      passed on unmodified, so a ``value_fn`` should be the loss of the whole virtual
      batch.

    Raises:
      ValueError: if ``micro_batches`` is not an integer of at least 1.
      TypeError: if ``tx`` is no transformation.

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
    inner = optax.with_extra_args_support(tx)

    def init_fn(params: PyTree) -> VirtualBatchState:
        return _init(inner, params)

    def update_fn(
        updates: PyTree,
        state: VirtualBatchState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, VirtualBatchState]:
        return _update(inner, micro_batches, updates, state, params, extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _init(
    inner: optax.GradientTransformationExtraArgs, params: PyTree
) -> VirtualBatchState:
    _, skip_state = optax.skip_not_finite(params, 0, params)
    return VirtualBatchState(
        multi_steps=optax.MultiStepsState(
            mini_step=jnp.zeros([], jnp.int32),
            gradient_step=jnp.zeros([], jnp.int32),
            inner_opt_state=strong_types(inner.init(strong_types(params))),
            acc_grads=jax.tree.map(
                lambda x: jnp.zeros_like(x, dtype=compute_dtype(x.dtype)), params
            ),
            skip_state=jax.tree.map(jnp.zeros_like, skip_state),
        ),
        mean_value=jnp.zeros([], accumulator_dtype(params)),
    )


def _update(
    inner: optax.GradientTransformationExtraArgs,
    micro_batches: int,
    updates: PyTree,
    state: VirtualBatchState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, VirtualBatchState]:
    last = state.multi_steps
    mean_value = state.mean_value
    if extra_args.get("value") is not None:
        value = jnp.asarray(extra_args["value"])
        validation.check_scalar_loss("virtual_batch", value)
        # Mark the gradient of a loss that is not finite, for `skip_not_finite`.
        updates = jax.tree.map(
            lambda g: jnp.where(jnp.isfinite(value), g, jnp.full_like(g, jnp.nan)),
            updates,
        )
        mean_value = _mean(mean_value, value, last.mini_step)
        extra_args = {**extra_args, "value": mean_value.astype(value.dtype)}
    mean_grads = jax.tree.map(
        lambda mean, g: _mean(mean, g, last.mini_step), last.acc_grads, updates
    )
    averaged = optax.tree.cast_like(mean_grads, updates)
    if "grad" in extra_args:
        extra_args = {**extra_args, "grad": averaged}
    skipped, skip_state = optax.skip_not_finite(updates, last.gradient_step, params)
    due = ~skipped & (last.mini_step == micro_batches - 1)

    def step() -> tuple[PyTree, PyTree]:
        return strong_types(
            inner.update(averaged, last.inner_opt_state, params, **extra_args)
        )

    def wait() -> tuple[PyTree, PyTree]:
        shapes, _ = jax.eval_shape(step)
        zeros = jax.tree.map(
            lambda u, s: jnp.zeros_like(u, dtype=s.dtype), updates, shapes
        )
        return zeros, last.inner_opt_state

    new_updates, inner_state = cond(due, step, wait)
    mini_step = jnp.where(due, 0, last.mini_step + 1)
    return new_updates, VirtualBatchState(
        multi_steps=optax.MultiStepsState(
            mini_step=jnp.where(skipped, last.mini_step, mini_step),
            gradient_step=jnp.where(
                due, optax.safe_increment(last.gradient_step), last.gradient_step
            ),
            inner_opt_state=inner_state,
            acc_grads=jax.tree.map(
                lambda new, old: jnp.where(skipped, old, jnp.where(due, 0, new)),
                mean_grads,
                last.acc_grads,
            ),
            skip_state=skip_state,
        ),
        mean_value=jnp.where(skipped, state.mean_value, jnp.where(due, 0, mean_value)),
    )


def _mean(mean: jax.Array, new: jax.Array, seen: jax.Array) -> jax.Array:
    """The mean of ``seen + 1`` numbers from that of all but the new one."""
    weight = (seen + 1).astype(mean.real.dtype)
    return mean + (new.astype(mean.dtype) - mean) / weight
