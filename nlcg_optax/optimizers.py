"""``nlcg``: the parts of this package as one ready-made optimiser."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.direction.rules import ConjugacyRule
from nlcg_optax.direction.transform import scale_by_nlcg
from nlcg_optax.dtypes import PyTree
from nlcg_optax.trees.inner_products import Scope
from nlcg_optax.wrappers.extra_args import for_linesearch

# How a noisy beta becomes a steady one: the decay of its average, and its cap.
BETA_SMOOTHING = 0.9
BETA_MAX = 0.95


def nlcg(
    learning_rate: optax.ScalarOrSchedule | None = None,
    rule: str | float | jax.Array | ConjugacyRule = "pr+",
    *,
    preconditioner: optax.GradientTransformation | None = None,
    beta_min: float | jax.Array = 0.0,
    beta_max: float | jax.Array | None = None,
    beta_smoothing: float | jax.Array | None = None,
    restart: Literal["powell"] | None = None,
    restart_period: int | None = None,
    scope: Scope = "global",
    weight_decay: float | jax.Array | None = None,
    weight_decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    step_control: optax.GradientTransformation | None = None,
    linesearch: optax.GradientTransformation | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Preconditioned nonlinear conjugate gradients.

    .. math::
        d_t = -P_t g_t + \beta_t d_{t-1}, \qquad
        \theta_{t+1} = \theta_t + \alpha_t \left(d_t - \lambda \theta_t\right),

    a thin chain: `scale_by_nlcg`, then ``step_control``, then decoupled weight decay
    :math:`\lambda`, then the step size :math:`\alpha_t`, which is

    - ``learning_rate``, a number or a schedule, for stochastic gradients; or
    - ``linesearch``, for deterministic ones; with ``learning_rate=None`` and no line
      search given it is ``optax.scale_by_zoom_linesearch`` with strong Wolfe
      conditions (curvature .1, as conjugate gradients need). ``update`` then takes
      ``value``, ``grad`` and ``value_fn`` as with ``optax.lbfgs``.

    Args:
      learning_rate: step size or schedule; may be None.
      rule: see `scale_by_nlcg`, as for every argument that is not described here.
      preconditioner: any Optax transformation that maps g to P g.
      beta_min: lower bound of β.
      beta_max: upper bound of β; None means 0.95 without a line search, 1 if
        ``rule`` is a number, and no bound with a line search.
      beta_smoothing: decay of an exponential average of β, or zero for none; None
        means 0.9 without a line search, zero with one or if ``rule`` is a number. The
        β of one mini-batch is noisy; see the section on few steps of
        ``experiments/README.md``. ``beta_smoothing=0., beta_max=1.`` is the paper's
        clipping. A β without bounds should not be averaged.
      restart: ``"powell"`` or None.
      restart_period: restart every so many steps; None for never.
      scope: ``"global"`` or ``"per_leaf"``.
      weight_decay: the factor :math:`\lambda`, or None for none; not together with a
        line search, whose ``value_fn`` should hold the penalty instead.
      weight_decay_mask: tree of booleans, or a function of the parameters, that tells
        which leaves decay.
      step_control: a transformation such as `scale_by_loss_ratio`.
      linesearch: a line search such as ``optax.scale_by_backtracking_linesearch``;
        it sees ``value``, ``grad`` and ``value_fn`` only, see `for_linesearch`.
      state_dtype: dtype of the state, such as ``jnp.bfloat16``.

    Returns:
      The optimiser.

    Raises:
      ValueError: if an argument is out of its range, or weight decay meets a line
        search.
      TypeError: if an argument is of a wrong kind.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda x: jnp.sum((1 - x[:-1])**2 + 100. * (x[1:] - x[:-1]**2)**2)
      >>> solver = nlcg()  # deterministic: PR+ with a strong Wolfe line search
      >>> params = jnp.array([-1.2, 1.])
      >>> state = solver.init(params)
      >>> value_and_grad = optax.value_and_grad_from_state(loss)
      >>> @jax.jit
      ... def step(params, state):
      ...     value, grad = value_and_grad(params, state=state)
      ...     updates, state = solver.update(
      ...         grad, state, params, value=value, grad=grad, value_fn=loss)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(60):
      ...     params, state = step(params, state)
      >>> bool(loss(params) < 1e-6)
      True
    """
    for name, part in (("step_control", step_control), ("linesearch", linesearch)):
        if part is not None:
            validation.check_transformation(name, part)
    if weight_decay is not None:
        validation.check_non_negative("weight_decay", weight_decay)
    if learning_rate is None and linesearch is None:
        linesearch = optax.scale_by_zoom_linesearch(
            max_linesearch_steps=30, curv_rtol=0.1, initial_guess_strategy="one"
        )
    if weight_decay is not None and linesearch is not None:
        raise ValueError(
            f"weight_decay={weight_decay!r} cannot go with a line search, which would "
            "not see it; add the penalty to value_fn"
        )
    is_constant = not isinstance(rule, str) and not callable(rule)
    is_noisy = linesearch is None and not is_constant
    if beta_max is None:
        beta_max = BETA_MAX if is_noisy else 1.0 if linesearch is None else jnp.inf
    if beta_smoothing is None:
        beta_smoothing = BETA_SMOOTHING if is_noisy else 0.0
    parts = [
        scale_by_nlcg(
            rule,
            preconditioner=preconditioner,
            beta_min=beta_min,
            beta_max=beta_max,
            beta_smoothing=beta_smoothing,
            restart=restart,
            restart_period=restart_period,
            scope=scope,
            state_dtype=state_dtype,
        )
    ]
    if step_control is not None:
        parts.append(step_control)
    if weight_decay is not None:
        parts.append(optax.add_decayed_weights(weight_decay, weight_decay_mask))
    if learning_rate is None:
        parts.append(optax.scale(-1.0))
    else:
        parts.append(optax.scale_by_learning_rate(learning_rate))
    if linesearch is not None:
        parts.append(for_linesearch(linesearch))
    return optax.chain(*parts)
