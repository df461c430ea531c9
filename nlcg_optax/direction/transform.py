"""The NLCG search direction as an Optax transformation."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.direction.beta import Decision, decide, safe_divide
from nlcg_optax.direction.options import Options, checked_options
from nlcg_optax.direction.products import measure
from nlcg_optax.direction.rules import ConjugacyRule
from nlcg_optax.direction.state import (
    NlcgDiagnostics,
    ScaleByNlcgState,
    no_diagnostics,
)
from nlcg_optax.dtypes import (
    PyTree,
    accumulator_dtype,
    compute_dtype,
    stored,
    stored_like,
    strong_types,
    times,
)
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.inner_products import Scope
from nlcg_optax.wrappers.extra_args import warn_of_near_misses
from nlcg_optax.wrappers.not_schedules import not_schedules
from nlcg_optax.wrappers.signs import warn_of_the_sign
from nlcg_optax.xla import scalars
from nlcg_optax.xla.automatic_sharding import explained_explicit_axes
from nlcg_optax.xla.in_place import selected

NAME = "scale_by_nlcg"
AXES_REMEDY = "the preconditioners of nlcg_optax run on both kinds"


@not_schedules("rule")
def scale_by_nlcg(
    rule: str | float | jax.Array | ConjugacyRule = "pr+",
    *,
    preconditioner: optax.GradientTransformation | None = None,
    beta_min: float | jax.Array | None = None,
    beta_max: float | jax.Array | None = None,
    beta_smoothing: float | jax.Array = 0.0,
    restart: Literal["ascent", "powell"] | None = "ascent",
    restart_period: int | jax.Array | None = None,
    scope: Scope = "global",
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns gradients into preconditioned nonlinear conjugate gradient directions.

    With the gradient :math:`g_t`, the nested preconditioner P and the conjugacy rule,

    .. math::
        z_t = P_t g_t, \qquad
        \beta_t = \mathrm{clip}(\mathrm{rule}, \beta_{min}, \beta_{max}), \qquad
        d_t = -z_t + \beta_t d_{t-1}.

    The updates are :math:`-d_t`, which ``optax.scale_by_learning_rate`` turns into a
    step along :math:`d_t`. The step size is whatever follows in the chain: a learning
    rate, a controller or (after ``optax.scale(-1.)``) a line search. Source:
    arXiv 1812.02886, section "Direction".

    The direction restarts (:math:`\beta_t = 0`) at the first step, where ``restart`` or
    ``restart_period`` asks for it, and where β is not finite. Where
    :math:`g^\top P g` is not positive, the step falls back to P = I, and
    ``num_preconditioner_skips`` of the diagnostics counts it; outside of ``jit`` there
    is also a warning if it happens at the first update. A step with a non-finite
    gradient or preconditioned gradient (or one whose squared norm overflows the
    accumulator, which in float32 means a norm above 1.8e19) leaves the state unchanged
    and gives a zero update.

    Args:
      rule: name of a conjugacy rule (see `nlcg_optax.direction.rules`), a number for a
        constant β, or a callable from `InnerProducts` to a scalar (under
        ``optax.inject_hyperparams``, which treats callables as schedules, with
        ``static_args=("rule",)``).
      preconditioner: an Optax transformation :math:`g \mapsto P g`, without a learning
        rate and its sign: ``optax.scale_by_adam()``, not ``optax.adam``. It gets the
        extra arguments of ``update`` and, as ``previous_direction``, the tree
        :math:`d_{t-1}` (zeros at first). None for the identity.
      beta_min: lower bound of β, which may be ``-inf``. None for that of the rule: 0
        for ``"fr"`` and ``"pr+"``, otherwise ``-inf``.
      beta_max: upper bound of β, which may be ``inf``. None for that of the rule: 1
        for ``"fr"`` and ``"pr+"``, as in arXiv 1812.02886, otherwise ``inf``.
      beta_smoothing: decay in [0, 1) of an exponential average of the clipped β,
        started at zero; the average is used in place of β. Zero switches it off.
      restart: ``"ascent"`` restarts where :math:`d_t` would not be a descent direction
        beyond rounding; ``"powell"`` restarts there and where
        :math:`|g_{t-1}^\top P g_t| \ge .2\, g_t^\top P g_t` (Powell, 1977). None makes
        neither test: a direction uphill on a small batch may be downhill on the others,
        and if an orthogonalization follows, as in `large_batch_nlcg`, restarts bring
        back the noise that the memory averages out. A preconditioner with
        :math:`g^\top P g \le 0`, or a β that is not finite, restarts in any case; so a
        run of a preset stops where the gradient is exactly zero.
      restart_period: steps between restarts; None for never.
      scope: ``"global"`` takes inner products over all parameters together, as
        arXiv 1812.02886 does; ``"per_leaf"`` gives each leaf its own β.
      state_dtype: dtype in which directions and gradients are stored, such as
        ``"bfloat16"``; by default that of the parameters. Complex parameters keep
        theirs. Under ``optax.inject_hyperparams``, which treats callables as schedules,
        give a name, not ``jnp.bfloat16``.

    Returns:
      A transformation with state `ScaleByNlcgState`. The memory is one copy of the
      parameters, one more if the rule or Powell's test needs the previous gradient,
      and one more if the rule needs the previous z of a preconditioner.

    Raises:
      ValueError: if an argument is out of its range or (in ``update``) the state does
        not match the tree of updates, or was made with other options.
      TypeError: if the rule or the preconditioner has a wrong type, or (in ``init``
        and ``update``) a leaf is not floating point, or (in ``update``) the state is
        not this transformation's.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(scale_by_nlcg("pr+"), optax.scale_by_learning_rate(0.1))
      >>> params = jnp.array([3., -2.])
      >>> state = tx.init(params)
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1., 4.]) * x**2)
      >>> for _ in range(30):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(loss(params) < 1e-2)
      True
    """
    options = checked_options(
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
    return build(options)


def build(options: Options) -> optax.GradientTransformationExtraArgs:
    """Returns the direction with these options, see `checked_options`."""
    return transformation(options, init, update)


def init(options: Options, params: PyTree) -> ScaleByNlcgState:
    """The state before the first step."""
    acc = accumulator_dtype(params)
    params = strong_types(params)
    needs = options.needs
    shape = _scalar_shape(options, params)
    # One array per field: `jax.jit` cannot donate an array twice.
    return ScaleByNlcgState(
        count=jnp.zeros([], jnp.int32),
        direction=_stored_zeros(options, params),
        grad_prev=_stored_zeros(options, params) if needs.grad_prev else (),
        precond_grad_prev=(
            _stored_zeros(options, params) if needs.precond_grad_prev else ()
        ),
        g_prev_z_prev=jnp.zeros(shape, acc),
        d_g_prev=jnp.zeros(shape, acc),
        d_d=jnp.zeros(shape, acc),
        d_pinv_d=jnp.zeros(shape, acc),
        beta_average=jnp.zeros(shape, acc),
        preconditioner_state=options.preconditioner.init(params),
        diagnostics=no_diagnostics(acc),
    )


def update(
    options: Options,
    g: PyTree,
    state: ScaleByNlcgState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByNlcgState]:
    """One step: the updates ``-d``, and the state after it."""
    check_state(NAME, options, g, state)
    warn_of_near_misses(extra_args)
    z, preconditioner_state = precondition(options, g, state, params, extra_args)
    measured = measure(options.needs, g, z, state, options.scope)
    decision = decide(options, measured, state)
    return advance(options, decision, g, z, preconditioner_state, state)


def check_state(name: str, options: Options, g: PyTree, state: Any) -> None:
    """Raises unless the state is one of a direction with these options, for ``g``."""
    validation.check_state(name, state, ScaleByNlcgState)
    validation.check_same_structure("updates", g, state.direction)
    validation.check_stored(
        name,
        state,
        state.direction,
        grad_prev=options.needs.grad_prev,
        precond_grad_prev=options.needs.precond_grad_prev,
    )
    shape = _scalar_shape(options, g)
    if jnp.shape(state.d_d) != shape:
        raise ValueError(
            f"{name}: update got a `state` with scalars of shape "
            f"{jnp.shape(state.d_d)}, but scope={options.scope!r} needs {shape}, so it "
            "was made with another scope; call init again"
        )


def precondition(
    options: Options,
    g: PyTree,
    state: ScaleByNlcgState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, PyTree]:
    """``z = P g``, and the new state of the preconditioner."""
    extra_args = {**extra_args, "previous_direction": state.direction}
    with explained_explicit_axes("preconditioner", AXES_REMEDY):
        return options.preconditioner.update(
            g, state.preconditioner_state, params, **extra_args
        )


def advance(
    options: Options,
    decision: Decision,
    g: PyTree,
    z: PyTree,
    preconditioner_state: PyTree,
    state: ScaleByNlcgState,
) -> tuple[PyTree, ScaleByNlcgState]:
    """The updates and the state after a decision; all work on trees is elementwise."""
    beta, finite, ascends = scalars.computed_once(
        decision.beta, decision.finite, decision.ascends
    )
    decision = decision._replace(beta=beta, finite=finite, ascends=ascends)

    def keep(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(
            lambda n, o: jnp.where(finite, stored(n, o.dtype), o), new, old
        )

    if options.preconditioned and options.ensure_positive:
        z = _map_by_leaf(
            lambda z_, g_, ascends: jnp.where(ascends, stored(g_, z_.dtype), z_),
            decision.ascends,
            z,
            g,
        )
    direction = next_direction(decision, z, state.direction)
    # Read off the new direction, so that only the direction is computed from z and d.
    updates = jax.tree.map(
        lambda d, g_: stored(jnp.where(finite, -d, 0), g_.dtype), direction, g
    )
    needs = options.needs
    new_state = ScaleByNlcgState(
        count=jnp.where(finite, optax.safe_increment(state.count), state.count),
        direction=stored_like(direction, state.direction),
        grad_prev=keep(g, state.grad_prev) if needs.grad_prev else (),
        precond_grad_prev=(
            keep(z, state.precond_grad_prev) if needs.precond_grad_prev else ()
        ),
        g_prev_z_prev=keep(decision.g_z, state.g_prev_z_prev),
        d_g_prev=keep(decision.slope + decision.noise, state.d_g_prev),
        d_d=keep(decision.d_d, state.d_d),
        d_pinv_d=keep(decision.d_pinv_d, state.d_pinv_d),
        beta_average=keep(decision.beta_average, state.beta_average),
        preconditioner_state=selected(
            options.preconditioner,
            finite,
            preconditioner_state,
            state.preconditioner_state,
        ),
        diagnostics=_diagnostics(decision, state.diagnostics),
    )
    if options.preconditioned:
        warn_of_the_sign(
            "preconditioner",
            state.count,
            new_state.diagnostics.num_preconditioner_skips,
            "gᵀP g is not positive at the first update, so P = I is used",
        )
    return updates, new_state


def next_direction(decision: Decision, z: PyTree, d: PyTree) -> PyTree:
    """``-z + beta d`` in at least float32, or d itself if the step is skipped."""

    def leaf_direction(z_: jax.Array, d_: jax.Array, beta: jax.Array) -> jax.Array:
        z_ = z_.astype(compute_dtype(z_.dtype))
        d_ = d_.astype(z_.dtype)
        return jnp.where(decision.finite, times(beta, d_) - z_, d_)

    return _map_by_leaf(leaf_direction, decision.beta, z, d)


def _diagnostics(decision: Decision, last: NlcgDiagnostics) -> NlcgDiagnostics:
    grad_norm = jnp.sqrt(jnp.sum(decision.g_g))
    direction_norm = jnp.sqrt(jnp.sum(decision.d_d))
    cosine = safe_divide(-jnp.sum(decision.slope), grad_norm * direction_norm)
    restarted = decision.restarted
    if restarted.ndim > 0:  # the memory of a leaf without a gradient is no loss
        restarted &= decision.g_g > 0
    restarted = jnp.any(restarted)
    now = NlcgDiagnostics(
        beta=jnp.sum(decision.beta) / max(decision.beta.size, 1),  # 0 without leaves
        cosine=jnp.clip(cosine, -1, 1),
        grad_norm=grad_norm,
        direction_norm=direction_norm,
        restarted=restarted,
        skipped=jnp.zeros_like(restarted),
        num_restarts=last.num_restarts + restarted.astype(jnp.int32),
        num_skips=last.num_skips,
        num_preconditioner_skips=last.num_preconditioner_skips
        + jnp.any(decision.ascends & (decision.g_g > 0)).astype(jnp.int32),
    )
    skipped = last._replace(
        skipped=jnp.ones_like(restarted), num_skips=last.num_skips + 1
    )
    return jax.tree.map(
        lambda taken, else_: jnp.where(decision.finite, taken, else_), now, skipped
    )


def _scalar_shape(options: Options, tree: PyTree) -> tuple[int, ...]:
    return (len(jax.tree.leaves(tree)),) if options.scope == "per_leaf" else ()


def _stored_zeros(options: Options, tree: PyTree) -> PyTree:
    """Zeros like the parameters, in the dtypes in which the state stores them."""

    def leaf_zeros(x: jax.Array) -> jax.Array:
        own = options.state_dtype is None or jnp.iscomplexobj(x)
        return jnp.zeros_like(x, dtype=x.dtype if own else options.state_dtype)

    return jax.tree.map(leaf_zeros, tree)


def _map_by_leaf(
    fn: Callable[..., jax.Array], scalars: jax.Array, *trees: PyTree
) -> PyTree:
    """Maps ``fn(*leaves, scalar)`` over trees, with one scalar or one per leaf."""
    leaves = [jax.tree.leaves(tree) for tree in trees]
    count = len(leaves[0])
    each = [scalars[i] for i in range(count)] if scalars.ndim else [scalars] * count
    return jax.tree.unflatten(
        jax.tree.structure(trees[0]),
        [fn(*args) for args in zip(*leaves, each, strict=True)],
    )
