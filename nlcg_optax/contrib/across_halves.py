"""A direction whose beta is measured across two halves of the mini-batch."""

from typing import Any

import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.direction.beta import decide
from nlcg_optax.direction.options import Options, checked_options
from nlcg_optax.direction.products import measure
from nlcg_optax.direction.rules import products_used
from nlcg_optax.direction.state import ScaleByNlcgState
from nlcg_optax.direction.transform import (
    advance,
    check_state,
    init,
    precondition,
    scale_by_nlcg,
)
from nlcg_optax.dtypes import PyTree
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.inner_products import vdots
from nlcg_optax.wrappers.not_schedules import not_schedules

NAME = "scale_by_nlcg_across_halves"


@not_schedules("rule", others=scale_by_nlcg)
def scale_by_nlcg_across_halves(
    rule: Any = "pr+", **kwargs: Any
) -> optax.GradientTransformationExtraArgs:
    r"""`scale_by_nlcg` with :math:`g^\top z` taken across halves of the mini-batch.

    The product of a noisy gradient with itself is too large by the variance of the
    noise; that of two independent ones is not. With the gradients :math:`g_a` and
    :math:`g_b` of the halves, the rule reads

    .. math:: g^\top z \approx \max\left(0,
        \tfrac12 \left(g_a^\top P g_b + g_b^\top P g_a\right)\right),

    and the excess of the whole batch's :math:`g^\top z` over this is subtracted from
    :math:`y^\top z` and added to the stored slope. The guards and the direction itself
    use the gradient of the whole batch. This costs two more applications of P.

    P is applied to each half from the same state as to the gradient of the step. So the
    formula holds for a P that does not depend on the gradient, such as
    `scale_by_hutchinson`. A P that takes in the gradient before it is applied, such as
    ``optax.scale_by_rms``, a limited memory or a polar factor, differs between the
    halves, and may bring back the noise that they leave out.

    It did not help, with the polar factor for P: after 60 few-step CIFAR steps at the
    full batch, batch 320 and 80, the training loss is 0.844, 1.167 and 1.622, against
    0.790, 1.178 and 1.606 for PR+ with equal smoothing, and 0.752, 1.167 and 1.580 for
    the default of `nlcg` (``experiments/README.md``).

    Args:
      rule: see `scale_by_nlcg`; it may not read ``yᵀP y`` or ``dᵀP⁻¹d``.
      **kwargs: other arguments of `scale_by_nlcg`.

    Returns:
      A transformation with state `ScaleByNlcgState`. ``update`` takes the extra
      argument ``half_grads``, a pair of trees whose mean is the gradient.

    Raises:
      ValueError: as `scale_by_nlcg`, or if the rule reads a product that the halves do
        not correct.
      TypeError: as `scale_by_nlcg`.

    Examples:
      >>> tx = scale_by_nlcg_across_halves("fr")
      >>> a, b = jnp.array([3., 1.]), jnp.array([1., 3.])
      >>> _, state = tx.update((a + b) / 2, tx.init(a), half_grads=(a, b))
      >>> state.g_prev_z_prev  # aᵀb; the squared norm of the mean is 8
      Array(6., dtype=float32)
    """
    options = checked_options(rule, **kwargs)
    biased = sorted(products_used(options.rule) & {"y_p_y", "d_pinv_d"})
    if biased:
        raise ValueError(
            f"rule={rule!r} reads {biased}, which products across halves do not "
            "correct; use another rule, such as 'pr+'"
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
    a, b = _halves(extra_args.get("half_grads"), g)
    z, preconditioner_state = precondition(options, g, state, params, extra_args)
    # The halves leave no trace: the new states of P are discarded.
    p_a, p_b = (
        precondition(options, half, state, params, extra_args)[0] for half in (a, b)
    )
    measured = measure(options.needs, g, z, state, options.scope)
    a_p_b, b_p_a = vdots(
        [(a, p_b), (b, p_a)], scope=options.scope, dtype=state.d_d.dtype
    )
    measured = measured._replace(
        noise=measured.g_z - jnp.maximum(0.5 * (a_p_b + b_p_a), 0),
        # Noise is left out of the stored slope, so of dᵀy too.
        d_y=measured.d_g - state.d_g_prev,
    )
    decision = decide(options, measured, state)
    return advance(options, decision, g, z, preconditioner_state, state)


def _halves(half_grads: Any, grads: PyTree) -> tuple[PyTree, PyTree]:
    """The gradients of the two halves; raises if they are missing or do not match."""
    validation.require(NAME, "half_grads", half_grads, "it multiplies them")
    if not isinstance(half_grads, tuple | list) or len(half_grads) != 2:
        raise ValueError(
            f"half_grads={half_grads!r} must be a pair of trees like the gradient"
        )
    for name, half in zip(("half_grads[0]", "half_grads[1]"), half_grads, strict=True):
        validation.check_same_structure(name, half, grads)
    first, second = half_grads
    return first, second
