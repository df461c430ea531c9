"""Daniel's direction: conjugate in the Hessian of the current mini-batch."""

from typing import Any

import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.curvature import hessian_vector_product
from nlcg_optax.direction.beta import decide
from nlcg_optax.direction.options import Options, checked_options
from nlcg_optax.direction.products import measure
from nlcg_optax.direction.rules import ratio
from nlcg_optax.direction.state import ScaleByNlcgState
from nlcg_optax.direction.transform import advance, check_state, init, precondition
from nlcg_optax.dtypes import PyTree
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.inner_products import named_vdots
from nlcg_optax.wrappers.extra_args import bind_extra_args

NAME = "scale_by_daniel"


def scale_by_daniel(
    *,
    preconditioner: optax.GradientTransformation | None = None,
    beta_min: float | None = None,
    beta_max: float | None = None,
    beta_smoothing: float = 0.0,
    restart_period: int | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""`scale_by_nlcg` with Daniel's β, from a product with the Hessian.

    .. math:: \beta = \frac{z^\top H d}{d^\top H d},

    which makes the new direction conjugate by definition; β is zero unless
    :math:`d^\top H d` is positive. The Hessian is that of the mini-batch of g, so that
    nothing is compared between batches. A product costs about two gradients per step.
    Source: Daniel, "The conjugate gradient method for linear and nonlinear operator
    equations", SIAM J. Numer. Anal. 4, 1967.

    It did not help: after 60 few-step CIFAR steps at the full batch, batch 320 and 80,
    the training loss is 0.804, 1.206 and 1.608, for three gradients per step, against
    0.790, 1.178 and 1.606 for PR+ with equal smoothing, and 0.752, 1.167 and 1.580 for
    the default of `nlcg` (``experiments/README.md``).

    Args:
      preconditioner: see `scale_by_nlcg`, as for all others.
      beta_min: lower bound of β; None for none.
      beta_max: upper bound of β; None for none.
      beta_smoothing: decay of an average of β.
      restart_period: steps between restarts; None for never.
      state_dtype: dtype in which the direction is stored.

    Returns:
      A transformation with state `ScaleByNlcgState`. ``update`` needs the parameters
      and the extra argument ``value_fn``, the loss of the mini-batch.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: as `scale_by_nlcg`.

    Examples:
      >>> import jax
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1., 4.]) * x**2)
      >>> tx = scale_by_daniel()
      >>> x = jnp.array([4., 1.])
      >>> state = tx.init(x)
      >>> for _ in range(2):  # two exact steps minimize in two dimensions
      ...     g = jax.grad(loss)(x)
      ...     updates, state = tx.update(g, state, x, value_fn=loss)
      ...     curvature = jnp.sum(jnp.array([1., 4.]) * updates**2)
      ...     x = x - (g @ updates) / curvature * updates
      >>> bool(jnp.max(jnp.abs(x)) < 1e-6)
      True
    """
    options = checked_options(
        0.0,  # no rule of inner products
        preconditioner=preconditioner,
        beta_min=beta_min,
        beta_max=beta_max,
        beta_smoothing=beta_smoothing,
        restart_period=restart_period,
        state_dtype=state_dtype,
    )

    return transformation(options, init, _update)


def _update(
    options: Options,
    g: PyTree,
    state: ScaleByNlcgState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByNlcgState]:
    check_state(NAME, options, g, state)
    h_d = _hessian_product(params, state.direction, extra_args)
    z, preconditioner_state = precondition(options, g, state, params, extra_args)
    measured = measure(options.needs, g, z, state, options.scope)
    products = named_vdots(
        {"z_h_d": (z, h_d), "d_h_d": (state.direction, h_d)}, dtype=state.d_d.dtype
    )
    curvature = products["d_h_d"]
    beta = jnp.where(curvature > 0, ratio(products["z_h_d"], curvature), 0)
    decision = decide(options._replace(rule=lambda _: beta), measured, state)
    return advance(options, decision, g, z, preconditioner_state, state)


def _hessian_product(
    params: PyTree | None, direction: PyTree, extra_args: dict[str, Any]
) -> PyTree:
    why = "it multiplies by the Hessian"
    validation.require(NAME, "params", params, why)
    value_fn = validation.require(
        NAME, "value_fn", extra_args.get("value_fn"), why, extra_args
    )
    return hessian_vector_product(
        bind_extra_args(value_fn, extra_args), params, direction
    )
