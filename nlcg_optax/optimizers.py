"""Ready-made optimizers: thin chains of the parts of this package."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.direction.damped import damp_by_beta
from nlcg_optax.direction.rules import RULES, ConjugacyRule
from nlcg_optax.direction.transform import scale_by_nlcg
from nlcg_optax.dtypes import PyTree
from nlcg_optax.linesearch.hager_zhang import scale_by_hager_zhang_linesearch
from nlcg_optax.preconditioners.kronecker import scale_by_kronecker
from nlcg_optax.preconditioners.matrices import vector_mask
from nlcg_optax.preconditioners.nested import IDENTITY
from nlcg_optax.preconditioners.orthogonal import scale_by_orthogonalization
from nlcg_optax.step_size.slope_ratio import scale_by_slope_ratio
from nlcg_optax.trees.inner_products import Scope
from nlcg_optax.wrappers.extra_args import checked_chain, for_linesearch
from nlcg_optax.wrappers.not_schedules import not_schedules

# For noisy gradients: decay of the average of beta, and upper bound of beta. For their
# choice see the section on few steps of experiments/README.md.
BETA_SMOOTHING = 0.9
BETA_MAX = 0.95
RAMP = 0.95  # the decay for an average of beta that should rise slowly from zero
# For the line search, as conjugate gradients require: Nocedal and Wright, "Numerical
# Optimization", 2006, section 3.1.
MAX_SLOPE_RATIO = 0.1


@not_schedules("rule", "weight_decay_mask")
def nlcg(
    learning_rate: optax.ScalarOrSchedule | None = None,
    rule: str | float | jax.Array | ConjugacyRule = "pr+",
    *,
    preconditioner: optax.GradientTransformation | None = None,
    beta_max: float | jax.Array | None = None,
    beta_smoothing: float | jax.Array | None = None,
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
    - ``linesearch``, for deterministic ones; if neither is given, the default is
      `scale_by_hager_zhang_linesearch` with :math:`\sigma = 0.1`, as conjugate
      gradients need. ``update`` then takes ``value``, ``grad`` and ``value_fn`` as
      with ``optax.lbfgs``, but with ``optax.value_and_grad_from_state`` the loss of
      bfloat16 or float16 parameters must be float32. Neither the objective nor a
      factor common to all parameters needs rescaling. Parameters of very different
      sizes need rescaling or a preconditioner.

    For restarts, other bounds or one β per leaf, chain `scale_by_nlcg` yourself.

    Args:
      learning_rate: step size or schedule; None with a line search.
      rule: see `scale_by_nlcg`.
      preconditioner: any Optax transformation that maps g to P g.
      beta_max: upper bound of β; None means 0.95 without a line search, and no bound
        with one or if ``rule`` is a number. Without a line search β is at least zero,
        too, unless ``rule`` is a number: ``"hz"`` and ``"dk"`` lose their negative β.
      beta_smoothing: decay of an exponential average of β, or zero for none; None
        means 0.9 without a line search, zero with one or if ``rule`` is a number. The
        β of one mini-batch is noisy; see the section on few steps of
        ``experiments/README.md``. ``beta_smoothing=0., beta_max=1.`` is the paper's
        clipping. A β without bounds should not be averaged.
      weight_decay: the factor :math:`\lambda`, or None for none. With a line search
        it is not allowed: include the penalty in ``value_fn`` instead.
      weight_decay_mask: tree of booleans, or a function of the parameters, that says
        which leaves decay.
      step_control: a transformation such as `scale_by_curvature_step`.
      linesearch: a line search such as ``optax.scale_by_backtracking_linesearch``;
        it receives ``value``, ``grad`` and ``value_fn`` only, see `for_linesearch`.
      state_dtype: dtype of the state, such as ``jnp.bfloat16``.

    Returns:
      The optimizer.

    Raises:
      ValueError: if an argument is out of its range, or a learning rate or weight
        decay is combined with a line search.
      TypeError: if an argument has the wrong type or, in ``update``, the state is not
        this optimizer's.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda x: jnp.sum((1 - x[:-1])**2 + 100. * (x[1:] - x[:-1]**2)**2)
      >>> solver = nlcg()  # deterministic: PR+ with the Hager-Zhang line search
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
    if learning_rate is not None:
        remedy = ""
        if isinstance(learning_rate, str) and learning_rate in RULES:
            given = f"{learning_rate!r}"
            remedy = (
                f"; the rule is the second argument: nlcg(0.1, {given}), or "
                f"nlcg(rule={given}) with a line search"
            )
        validation.check_rate("learning_rate", learning_rate, remedy)
    if learning_rate is not None and linesearch is not None:
        raise ValueError(
            f"learning_rate={learning_rate!r} cannot be combined with a linesearch, "
            "which finds the step size; leave one of them out"
        )
    if learning_rate is None and linesearch is None:
        linesearch = scale_by_hager_zhang_linesearch(max_slope_ratio=MAX_SLOPE_RATIO)
    elif linesearch is not None:
        linesearch = for_linesearch(linesearch)
    if weight_decay is not None and linesearch is not None:
        raise ValueError(
            f"weight_decay={weight_decay!r} cannot be combined with a line search, "
            "which would not see it; add the penalty to value_fn"
        )
    is_constant = not isinstance(rule, str) and not callable(rule)
    is_noisy = linesearch is None and not is_constant
    if beta_max is None:
        beta_max = BETA_MAX if is_noisy else jnp.inf
    elif is_noisy:
        validation.check_at_least("beta_max", beta_max, 0.0)
    if beta_smoothing is None:
        beta_smoothing = BETA_SMOOTHING if is_noisy else 0.0
    parts = [
        scale_by_nlcg(
            rule,
            preconditioner=preconditioner,
            beta_min=0.0 if is_noisy else None,
            beta_max=beta_max,
            beta_smoothing=beta_smoothing,
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
        parts.append(linesearch)
    return checked_chain("nlcg", parts)


@not_schedules("weight_decay_mask", "weight_dimension_numbers")
def large_batch_nlcg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    preconditioner: optax.GradientTransformation | None = None,
    scope: Scope = "global",
    weight_decay: float | jax.Array | None = None,
    weight_decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    weight_dimension_numbers: PyTree | Callable[[PyTree], PyTree] | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""NLCG for large batches, with a learning rate as the only number to choose.

    .. math::
        z_t = P_t g_t, \qquad m_t = z_t + \beta_t m_{t-1}, \qquad
        u_t = U_t V_t^\top \text{ of } m_t = U_t \Sigma_t V_t^\top,

    for matrices; other leaves take :math:`(1 - \beta_t)\, m_t`. Kronecker factors
    (`scale_by_kronecker`) come first, the memory of PR+ is next, and the polar factor
    (`scale_by_orthogonalization`) is last. β is averaged over steps (decay 0.95) and
    capped at 0.95. The average starts at zero and is not corrected for that: β ramps up
    over about forty steps, and no momentum is left to tune.

    Args:
      learning_rate: number or schedule, of the size of Muon's without Muon's scaling
        by shape; it should fall to zero over the run.
      preconditioner: replaces `scale_by_kronecker`.
      scope: ``"per_leaf"`` for one β per leaf, see `scale_by_nlcg`.
      weight_decay: see `nlcg`.
      weight_decay_mask: which leaves decay.
      weight_dimension_numbers: which axes are rows and columns, see
        `scale_by_orthogonalization`.
      state_dtype: dtype of the stored direction and gradient.

    Returns:
      The optimizer; its ``update`` takes no extra argument.

    Raises:
      ValueError: if an argument is out of its range.
      TypeError: if an argument has the wrong type.

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
    validation.check_rate(
        "learning_rate", learning_rate, "; only nlcg() has a line search instead"
    )
    direction = _large_batch_direction(
        preconditioner,
        scope,
        weight_decay,
        weight_decay_mask,
        weight_dimension_numbers,
        state_dtype,
    )
    rate = optax.scale_by_learning_rate(learning_rate)
    return checked_chain("large_batch_nlcg", [direction, rate])


@not_schedules("weight_decay_mask", "weight_dimension_numbers")
def tuning_free_nlcg(
    num_steps: int | jax.Array | None = None,
    *,
    preconditioner: optax.GradientTransformation | None = None,
    scope: Scope = "global",
    weight_decay: float | jax.Array | None = None,
    weight_decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    weight_dimension_numbers: PyTree | Callable[[PyTree], PyTree] | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """NLCG without a learning rate and without a momentum: the one to run first.

    It combines the direction of `large_batch_nlcg` with the step size of
    `scale_by_slope_ratio`, which reads the loss that the training loop computes anyway.
    It needs no second evaluation and no function of the network.

    With ``num_steps``, the length of the run, it finds its step size, holds it and lets
    it fall to zero. Without ``num_steps``, the run has no fixed end. Nothing is
    annealed, so a run of known length ends at a higher loss; in noise, evaluate an
    average of the parameters, such as that of ``optax.incremental_update``.

    A schedule may be multiplied on top, ``optax.chain(tuning_free_nlcg(),
    optax.scale_by_schedule(...))``. While the step size adapts, which without
    ``num_steps`` is always, it offsets much of a schedule that falls slowly. Clip the
    gradients before this optimizer, at a norm that few of them exceed:
    ``optax.chain(optax.clip_by_global_norm(10.), tuning_free_nlcg())``. The slopes are
    measured with the clipped gradients; if many are clipped, the slopes do not match
    the change of the loss.

    It stores two more copies of the parameters than Adam (four in all: direction,
    previous gradient, second moments and last step), and the Kronecker factors with
    their roots. A step adds the matrix work of `large_batch_nlcg` and two inner
    products.

    If one more derivative of the outputs per step is affordable, the step may start
    from the minimizer of the Gauss-Newton model, which has the curvature of this very
    batch: nest ``optax.chain(direction, scale_by_curvature_step("gauss_newton"))`` in
    `scale_by_slope_ratio` with ``initial_step_size=1.``.

    Args:
      num_steps: number of updates of the run; None if it is not known. Later updates
        are zero, except that the last step may still be taken back in part. With
        `virtual_batch` one update is one virtual batch. To train longer, build the
        optimizer with a larger number and keep the state.
      preconditioner: see `large_batch_nlcg`, as for all arguments below.
      scope: ``"per_leaf"`` for one β per leaf.
      weight_decay: decoupled, and scaled by the step size that is found.
      weight_decay_mask: which leaves decay.
      weight_dimension_numbers: which axes are rows and columns.
      state_dtype: dtype of the stored direction and gradient.

    Returns:
      The optimizer; its ``update`` needs the extra argument ``value``, the loss.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if an argument has the wrong type.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda w: jnp.sum((w @ jnp.arange(6.).reshape(3, 2) - 1.)**2)
      >>> tx = tuning_free_nlcg(num_steps=60)
      >>> @jax.jit
      ... def step(w, state):
      ...     value, grads = jax.value_and_grad(loss)(w)
      ...     updates, state = tx.update(grads, state, w, value=value)
      ...     return optax.apply_updates(w, updates), state
      >>> w = jnp.zeros([4, 3])
      >>> state = tx.init(w)
      >>> for _ in range(60):
      ...     w, state = step(w, state)
      >>> bool(loss(w) < 1e-2)
      True
    """
    direction = _large_batch_direction(
        preconditioner,
        scope,
        weight_decay,
        weight_decay_mask,
        weight_dimension_numbers,
        state_dtype,
    )
    step = scale_by_slope_ratio(direction, num_steps)
    return checked_chain("tuning_free_nlcg", [step, optax.scale(-1.0)])


def _large_batch_direction(
    preconditioner: optax.GradientTransformation | None,
    scope: Scope,
    weight_decay: float | jax.Array | None,
    weight_decay_mask: PyTree | Callable[[PyTree], PyTree] | None,
    weight_dimension_numbers: PyTree | Callable[[PyTree], PyTree] | None,
    state_dtype: Any,
) -> optax.GradientTransformationExtraArgs:
    """Kronecker factors, the memory of PR+, the polar factor, then weight decay."""
    if preconditioner is None:
        preconditioner = scale_by_kronecker(
            weight_dimension_numbers=weight_dimension_numbers
        )
    memory = scale_by_nlcg(
        "pr+",
        preconditioner=preconditioner,
        beta_min=0.0,
        beta_max=BETA_MAX,
        beta_smoothing=RAMP,
        restart=None,
        scope=scope,
        state_dtype=state_dtype,
    )
    parts = [
        damp_by_beta(memory, vector_mask(weight_dimension_numbers)),
        scale_by_orthogonalization(
            vectors=IDENTITY, weight_dimension_numbers=weight_dimension_numbers
        ),
    ]
    if weight_decay is not None:
        validation.check_non_negative("weight_decay", weight_decay)
        parts.append(optax.add_decayed_weights(weight_decay, weight_decay_mask))
    return optax.chain(*parts)
