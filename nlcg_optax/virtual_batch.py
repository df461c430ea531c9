"""Virtual batches: one NLCG step from several micro-batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.inner_products import PyTree


class VirtualBatchState(NamedTuple):
    """State of `virtual_batch`.

    Attributes:
      multi_steps: state of the ``optax.MultiSteps`` inside.
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

    ``optax.MultiSteps`` does the work; by itself it would give ``tx`` the loss of the
    last micro-batch only, and one micro-batch with a NaN would spoil every step after
    it. Here a micro-batch with a non-finite gradient or loss is left out, as if it
    had not been drawn. The other micro-steps give zero updates. Source: arXiv
    1812.02886, section on virtual batching.

    Args:
      tx: any Optax transformation.
      micro_batches: how many micro-batches make a step.

    Returns:
      A transformation whose ``update`` takes the extra argument ``value`` (optional)
      and passes all others on to ``tx``; a ``value_fn`` is used as given, so it
      should be the loss of the whole virtual batch.

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
    multi_steps = optax.MultiSteps(
        tx, every_k_schedule=micro_batches, should_skip_update_fn=optax.skip_not_finite
    )

    def init_fn(params: PyTree) -> VirtualBatchState:
        return VirtualBatchState(
            multi_steps=multi_steps.init(params), mean_value=jnp.zeros([], jnp.float32)
        )

    def update_fn(
        updates: PyTree,
        state: VirtualBatchState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, VirtualBatchState]:
        mean_value = state.mean_value
        if extra_args.get("value") is not None:
            value = jnp.asarray(extra_args["value"])
            validation.check_scalar_loss("virtual_batch", value)
            # A loss that is not finite spoils its micro-batch: skip_not_finite shall
            # see it in the gradient.
            usable = jnp.isfinite(value)
            updates = jax.tree.map(
                lambda g: jnp.where(usable, g, jnp.full_like(g, jnp.nan)), updates
            )
            seen = state.multi_steps.mini_step.astype(jnp.float32)
            change = (value.astype(jnp.float32) - mean_value) / (seen + 1)
            mean_value = mean_value + jnp.where(usable, change, 0)
            extra_args = {**extra_args, "value": mean_value.astype(value.dtype)}
        updates, inner = multi_steps.update(
            updates, state.multi_steps, params, **extra_args
        )
        skipped = inner.skip_state["should_skip"]
        mean_value = jnp.where(skipped, state.mean_value, mean_value)
        mean_value = jnp.where(inner.mini_step == 0, 0, mean_value)
        return updates, VirtualBatchState(inner, mean_value)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
