"""Ready-made optimisers for large batches, as few numbers to choose as possible."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from nlcg_optax.curvature.source import CurvatureKind
from nlcg_optax.dtypes import PyTree
from nlcg_optax.optimizers import nlcg
from nlcg_optax.preconditioners.kronecker import scale_by_kronecker
from nlcg_optax.step_size.curvature_step import scale_by_curvature_step


def large_batch_nlcg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    preconditioner: optax.GradientTransformation | None = None,
    weight_decay: float | jax.Array | None = None,
    weight_decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """NLCG for large batches, with a learning rate as the only number to choose.

    PR+ on Kronecker-factored second moments (`scale_by_kronecker`), with β averaged
    over steps (decay 0.9) and capped at 0.95, so that no momentum is left to tune. How
    it compares with tuned baselines, and by how much the choice matters, stands in the
    section on few steps of ``experiments/README.md``.

    Args:
      learning_rate: number or schedule, of the size of Adam's or somewhat smaller; it
        should fall to zero over the run.
      preconditioner: another one than `scale_by_kronecker`, such as
        `scale_by_orthogonalization`.
      weight_decay: see `nlcg`, like all that follows.
      weight_decay_mask: which leaves decay.
      state_dtype: dtype of the direction and of the gradient that is kept.

    Returns:
      The optimiser; its ``update`` takes no extra argument.

    Raises:
      ValueError: if an argument is out of its range.
      TypeError: if an argument is of a wrong kind.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda w: jnp.sum((w @ jnp.arange(6.).reshape(3, 2) - 1.)**2)
      >>> tx = large_batch_nlcg(optax.linear_schedule(0.3, 0., 60))
      >>> @jax.jit
      ... def step(w, state):
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     return optax.apply_updates(w, updates), state
      >>> w = jnp.zeros([4, 3])
      >>> state = tx.init(w)
      >>> for _ in range(60):
      ...     w, state = step(w, state)
      >>> bool(loss(w) < 1e-2)
      True
    """
    return nlcg(
        learning_rate,
        "pr+",
        preconditioner=preconditioner or scale_by_kronecker(),
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        state_dtype=state_dtype,
    )


def tuning_free_nlcg(
    multiplier: optax.ScalarOrSchedule = 1.0,
    *,
    curvature: CurvatureKind = "gauss_newton",
    refresh_period: int = 1,
    preconditioner: optax.GradientTransformation | None = None,
    weight_decay: float | jax.Array | None = None,
    weight_decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """NLCG without a learning rate and without a momentum, to be run first.

    `large_batch_nlcg` with `scale_by_curvature_step`: each step goes to the averaged
    minimiser of the quadratic model along the direction. What is left, ``multiplier``,
    has no dimension and stays at one, unless the length of the run is known: then let
    it fall to zero, as in ``tuning_free_nlcg(optax.linear_schedule(1., 0., steps))``.

    Args:
      multiplier: of the minimiser along the direction; a number or schedule.
      curvature: see `scale_by_curvature_step`; ``"gauss_newton"`` needs the extra
        arguments ``outputs_fn`` and ``output_loss_fn`` in ``update``, ``"hessian"``
        needs ``value_fn``.
      refresh_period: measure the curvature every so many steps.
      preconditioner: see `large_batch_nlcg`, like all that follows.
      weight_decay: decoupled; it is not scaled by the curvature step.
      weight_decay_mask: which leaves decay.
      state_dtype: dtype of the direction and of the gradient that is kept.

    Returns:
      The optimiser.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if an argument is of a wrong kind.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> inputs = jnp.arange(6.).reshape(3, 2)
      >>> model = lambda w: w @ inputs
      >>> output_loss = lambda outputs: jnp.sum((outputs - 1.)**2)
      >>> tx = tuning_free_nlcg()
      >>> @jax.jit
      ... def step(w, state):
      ...     grads = jax.grad(lambda w: output_loss(model(w)))(w)
      ...     updates, state = tx.update(grads, state, w, outputs_fn=model,
      ...                                output_loss_fn=output_loss)
      ...     return optax.apply_updates(w, updates), state
      >>> w = jnp.zeros([4, 3])
      >>> state = tx.init(w)
      >>> for _ in range(60):
      ...     w, state = step(w, state)
      >>> bool(output_loss(model(w)) < 1e-2)
      True
    """
    return nlcg(
        multiplier,
        "pr+",
        preconditioner=preconditioner or scale_by_kronecker(),
        step_control=scale_by_curvature_step(curvature, refresh_period=refresh_period),
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        state_dtype=state_dtype,
    )
