"""Virtual batches: one NLCG step from several micro-batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, accumulator_dtype, promote, strong_types


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

    ``optax.MultiSteps`` does the work, and three things are added: by itself it would
    give ``tx`` the loss (and, for a line search, the gradient) of the last micro-batch
    only, it would run ``tx`` at every micro-step, and one micro-batch with a NaN would
    spoil every step after it. Here a micro-batch with a non-finite gradient or loss is
    left out, as if it had not been drawn. The other micro-steps give zero updates.
    Source: arXiv 1812.02886, section on virtual batching.

    Args:
      tx: any Optax transformation.
      micro_batches: how many micro-batches make a step.

    Returns:
      A transformation whose ``update`` takes the extra arguments ``value`` and
      ``grad`` (both optional) and passes their averages on to ``tx``; all others go
      through as they are, so a ``value_fn`` should be the loss of the whole virtual
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

    def multi_steps(dtype: Any, due: jax.Array) -> optax.MultiSteps:
        def update_if_due(
            updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
        ) -> tuple[PyTree, PyTree]:
            if "grad" in extra_args:
                extra_args = {**extra_args, "grad": updates}

            def step() -> tuple[PyTree, PyTree]:
                result = inner.update(updates, state, params, **extra_args)
                return strong_types(result)

            def wait() -> tuple[PyTree, PyTree]:
                shapes, _ = jax.eval_shape(step)
                zeros = jax.tree.map(
                    lambda u, s: jnp.zeros_like(u, dtype=s.dtype), updates, shapes
                )
                return zeros, state

            return jax.lax.cond(due, step, wait)

        return optax.MultiSteps(
            optax.GradientTransformationExtraArgs(
                lambda params: strong_types(inner.init(strong_types(params))),
                update_if_due,
            ),
            every_k_schedule=micro_batches,
            should_skip_update_fn=optax.skip_not_finite,
            accumulator_dtype=dtype,
        )

    def init_fn(params: PyTree) -> VirtualBatchState:
        dtype = _common_dtype(params)
        return VirtualBatchState(
            multi_steps=multi_steps(dtype, jnp.array(False)).init(params),
            mean_value=jnp.zeros([], accumulator_dtype(params)),
        )

    def update_fn(
        updates: PyTree,
        state: VirtualBatchState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, VirtualBatchState]:
        mini_step, mean_value = state.multi_steps.mini_step, state.mean_value
        if extra_args.get("value") is not None:
            value = jnp.asarray(extra_args["value"])
            validation.check_scalar_loss("virtual_batch", value)
            # A loss that is not finite spoils its micro-batch: skip_not_finite shall
            # see it in the gradient.
            usable = jnp.isfinite(value)
            updates = jax.tree.map(
                lambda g: jnp.where(usable, g, jnp.full_like(g, jnp.nan)), updates
            )
            seen = mini_step.astype(mean_value.dtype)
            change = (value.astype(mean_value.dtype) - mean_value) / (seen + 1)
            mean_value = mean_value + jnp.where(usable, change, 0)
            extra_args = {**extra_args, "value": mean_value.astype(value.dtype)}
        due = mini_step == micro_batches - 1
        accumulator = multi_steps(_common_dtype(updates), due)
        with jax.numpy_dtype_promotion("standard"):  # Optax divides by an integer
            updates, inner_state = accumulator.update(
                updates, state.multi_steps, params, **extra_args
            )
        skipped = inner_state.skip_state["should_skip"]
        mean_value = jnp.where(skipped, state.mean_value, mean_value)
        mean_value = jnp.where(inner_state.mini_step == 0, 0, mean_value)
        return updates, VirtualBatchState(inner_state, mean_value)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _common_dtype(tree: PyTree) -> jnp.dtype:
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(tree)}
    is_complex = {jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes}
    if len(is_complex) > 1:
        raise TypeError(
            "virtual_batch cannot average real and complex parameters together (the "
            f"dtypes are {sorted(map(str, dtypes))}); give each its own with "
            "optax.partition"
        )
    return promote(jnp.float32, *dtypes)
