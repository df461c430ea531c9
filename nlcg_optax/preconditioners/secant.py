"""Diagonal BFGS: a diagonal estimate of the curvature, updated by secant pairs."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.curvature.refresh import if_due, is_due
from nlcg_optax.curvature.source import product_fn
from nlcg_optax.dtypes import (
    PyTree,
    accumulator_dtype,
    difference,
    stored,
    zeros_like,
)
from nlcg_optax.preconditioners.diagonal_scaling import divide_by_diagonal
from nlcg_optax.preconditioners.secant_pair import SecantPair, judge, refreshed
from nlcg_optax.transformation import transformation
from nlcg_optax.xla.in_place import SelfGuardedTransformation, flag_per_leaf

NAME = "scale_by_diagonal_secant"
SECANTS = ("difference", "hvp")


class DiagonalSecantDiagnostics(NamedTuple):
    """Scalars about `scale_by_diagonal_secant`.

    Attributes:
      curvature: ``yᵀp`` of the last secant pair, taken or refused.
      num_secants: pairs taken into h so far.
      num_secant_skips: pairs refused so far.
    """

    curvature: jax.Array
    num_secants: jax.Array
    num_secant_skips: jax.Array


class ScaleByDiagonalSecantState(NamedTuple):
    """State of `scale_by_diagonal_secant`.

    Attributes:
      count: number of updates with a finite gradient.
      grad_prev: previous gradient, or the empty tuple if not needed.
      params_prev: previous parameters, or the empty tuple if not needed.
      diagonal: the curvature estimate h, like the parameters.
      diagnostics: counters.
    """

    count: jax.Array  # type: ignore[assignment]
    grad_prev: PyTree
    params_prev: PyTree
    diagonal: PyTree
    diagnostics: DiagonalSecantDiagnostics


class Options(NamedTuple):
    """Arguments of `scale_by_diagonal_secant`, and two options of the paper's program.

    Attributes:
      learning_rate: learning rate of the step, or None.
      secant: the source of y.
      refresh_period: steps between secant pairs.
      eps: the ε of the formula.
      damping: added to h before the division.
      reset_period: steps between resets of h to one, or None.
      spectral_scaling: whether yᵀy replaces yᵀp in the last term of the formula.
    """

    learning_rate: optax.ScalarOrSchedule | None
    secant: str
    refresh_period: int
    eps: float
    damping: float
    reset_period: int | None
    spectral_scaling: bool

    @property
    def from_grads(self) -> bool:
        """Whether y is a difference of gradients."""
        return self.secant == "difference"

    @property
    def from_params(self) -> bool:
        """Whether p is a difference of parameters."""
        return self.from_grads and self.learning_rate is None


def scale_by_diagonal_secant(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    secant: Literal["difference", "hvp"] = "difference",
    refresh_period: int = 1,
    eps: float = 1e-8,
    damping: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the gradient by a diagonal BFGS estimate of the curvature.

    With a secant pair :math:`(p, y)`, :math:`y \approx H p`, and elementwise squares,

    .. math::
        h \leftarrow \left| h - \frac{(h p)^2 + \epsilon}{p^\top h p + \epsilon}
            + \frac{y^2 + \epsilon}{y^\top p + \epsilon} \right|, \qquad
        P g = \frac{g}{h + \mathrm{damping}},

    with :math:`h = 1` at first and :math:`P = I` until the first secant pair can be
    formed. The inner products run over all parameters. Source: arXiv 1812.02886.

    - ``secant="difference"``, as in the source: :math:`y = g_t - g_{t-1}`, of two
      different mini-batches, and :math:`p = \eta_t b\, d_{t-1}` with the learning
      rate :math:`\eta_t`, the multiplier b of the step controller and the previous
      direction. The pair is refused if :math:`y^\top p < \epsilon` or
      :math:`p^\top h p < \epsilon`. With ``learning_rate=None``, p is the difference
      of the parameters, which is right for any step size and costs a copy of them.
    - ``secant="hvp"``: :math:`p = d_{t-1}` and :math:`y = H p` by a Hessian-vector
      product on the *same* batch, with :math:`\epsilon = 0`. The result does not depend
      on the length of p. The pair is refused unless
      :math:`d^\top H d > 10^{-6} \|d\| \|H d\|`.

    Args:
      learning_rate: a number or schedule, the same as that of the step; only for
        ``secant="difference"``.
      secant: where y comes from.
      refresh_period: steps between secant pairs; the product with the Hessian is paid
        only at these steps. The extra argument ``refresh=True`` or ``refresh=False`` of
        ``update`` overrides it.
      eps: the :math:`\epsilon` above, for ``secant="difference"``.
      damping: added to h before the division.

    Returns:
      A transformation; nest it as ``preconditioner`` of `scale_by_nlcg`. Its
      ``update`` takes the extra arguments ``previous_direction`` (from
      `scale_by_nlcg`), ``step_multiplier`` (optional, from `feed_step_multiplier`),
      and ``value_fn`` (or ``hvp_fn(params, vector)``) for ``secant="hvp"``. A gradient
      whose squared norm is not finite leaves the state unchanged.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if ``learning_rate`` is neither a number nor a schedule.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1., 100.]) * x**2)
      >>> tx = scale_by_diagonal_secant(secant="hvp")
      >>> params, direction = jnp.array([1., 1.]), jnp.array([0., -1.])
      >>> state = tx.init(params)
      >>> grad = jax.grad(loss)(params)
      >>> for _ in range(2):
      ...     z, state = tx.update(grad, state, params, value_fn=loss,
      ...                          previous_direction=direction)
      >>> z  # the second curvature is known exactly now
      Array([1., 1.], dtype=float32)
    """
    return build(
        checked_options(
            learning_rate,
            secant=secant,
            refresh_period=refresh_period,
            eps=eps,
            damping=damping,
        )
    )


def checked_options(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    secant: str = "difference",
    refresh_period: int = 1,
    eps: float = 1e-8,
    damping: float = 1e-8,
    reset_period: int | None = None,
    spectral_scaling: bool = False,
) -> Options:
    """Returns the `Options` with these values; raises where one is out of its range."""
    validation.check_choice("secant", secant, SECANTS)
    if learning_rate is not None:
        remedy = ""
        if isinstance(learning_rate, str) and learning_rate in SECANTS:
            remedy = f"; the source of y is a keyword: secant={learning_rate!r}"
        validation.check_rate("learning_rate", learning_rate, remedy)
    validation.check_positive_int("refresh_period", refresh_period)
    if reset_period is not None:
        validation.check_positive_int("reset_period", reset_period)
    validation.check_static(spectral_scaling=spectral_scaling)
    validation.check_bool("spectral_scaling", spectral_scaling)
    validation.check_positive("eps", eps)
    validation.check_non_negative("damping", damping)
    if learning_rate is not None and secant == "hvp":
        raise ValueError(
            f"learning_rate={learning_rate!r} must be None with secant='hvp', which "
            "does not depend on the length of the step"
        )
    return Options(
        learning_rate,
        secant,
        refresh_period,
        eps,
        damping,
        reset_period,
        spectral_scaling,
    )


def build(options: Options) -> SelfGuardedTransformation:
    """Returns the transformation with these options."""
    return transformation(options, _init, _update, SelfGuardedTransformation)


def _init(options: Options, params: PyTree) -> ScaleByDiagonalSecantState:
    dtype = accumulator_dtype(params)
    return ScaleByDiagonalSecantState(
        count=jnp.zeros([], jnp.int32),
        grad_prev=zeros_like(params) if options.from_grads else (),
        params_prev=zeros_like(params) if options.from_params else (),
        diagonal=jax.tree.map(
            lambda p: jnp.ones_like(p, dtype=jnp.finfo(p.dtype).dtype), params
        ),
        diagnostics=DiagonalSecantDiagnostics(
            curvature=jnp.zeros([], dtype),
            num_secants=jnp.zeros([], jnp.int32),
            num_secant_skips=jnp.zeros([], jnp.int32),
        ),
    )


def _update(
    options: Options,
    g: PyTree,
    state: ScaleByDiagonalSecantState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleByDiagonalSecantState]:
    validation.check_state(NAME, state, ScaleByDiagonalSecantState)
    validation.check_same_structure("updates", g, state.diagonal)
    validation.check_stored(
        NAME,
        state,
        state.diagonal,
        grad_prev=options.from_grads,
        params_prev=options.from_params,
    )
    refresh = is_due(state.count, options.refresh_period, extra_args)
    due = (state.count > 0) & refresh
    h, due = _reset(options, state, due)
    p, length = _step_taken(options, state, params, extra_args)
    if options.from_grads:
        y = difference(g, state.grad_prev)
    else:
        product = product_fn(NAME, "hessian", params, extra_args)
        y = if_due(
            refresh if isinstance(refresh, bool) else due,
            lambda: optax.tree.cast_like(product(p), params),
            lambda: zeros_like(params),
        )
    pair = judge(
        g,
        h,
        p,
        y,
        length,
        due,
        eps=options.eps if options.from_grads else None,
        spectral_scaling=options.spectral_scaling,
    )
    if options.from_grads:
        # -y, as a separate expression, so that no y is kept from the products to here.
        y = difference(state.grad_prev, g)
    h = refreshed(pair, h, p, y)

    # In this order: h, then g in place of g_prev, then z.
    def kept(new: PyTree, old: PyTree) -> PyTree:
        flags = flag_per_leaf(pair.finite, after=h)
        return jax.tree.map(
            lambda n, o, flag: jnp.where(flag, stored(n, o.dtype), o), new, old, flags
        )

    grad_prev, active = (), state.count > 0
    if options.from_grads:
        grad_prev = kept(g, state.grad_prev)
        active = flag_per_leaf(active, after=grad_prev)
    z = divide_by_diagonal(g, h, options.damping, active=active)
    return z, ScaleByDiagonalSecantState(
        count=jnp.where(pair.finite, optax.safe_increment(state.count), state.count),
        grad_prev=grad_prev,
        params_prev=kept(params, state.params_prev) if options.from_params else (),
        diagonal=h,
        diagnostics=_diagnostics(pair, state.diagnostics),
    )


def _reset(
    options: Options, state: ScaleByDiagonalSecantState, due: jax.Array
) -> tuple[PyTree, jax.Array]:
    """The estimate h and whether a pair is due, after a reset if one is due."""
    if options.reset_period is None:
        return state.diagonal, due
    reset = (state.count > 0) & (state.count % options.reset_period == 0)
    h = jax.tree.map(lambda x: jnp.where(reset, jnp.ones_like(x), x), state.diagonal)
    return h, due & ~reset


def _step_taken(
    options: Options,
    state: ScaleByDiagonalSecantState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, jax.Array]:
    """The previous step p, as a tree and the number to multiply it by."""
    one = jnp.ones([], state.diagnostics.curvature.dtype)
    if options.from_params:
        validation.require(NAME, "params", params, "learning_rate is None")
        validation.check_same_structure("params", params, state.diagonal)
        return difference(params, state.params_prev), one
    direction = validation.require(
        NAME,
        "previous_direction",
        extra_args.get("previous_direction"),
        "scale_by_nlcg passes it to its preconditioner",
    )
    validation.check_same_structure("previous_direction", direction, state.diagonal)
    if not options.from_grads:
        return direction, one
    rate = options.learning_rate
    rate = rate(state.count) if callable(rate) else rate
    multiplier = jnp.asarray(extra_args.get("step_multiplier", 1.0))
    return direction, jnp.asarray(rate).astype(one.dtype) * multiplier.astype(one.dtype)


def _diagnostics(
    pair: SecantPair, last: DiagonalSecantDiagnostics
) -> DiagonalSecantDiagnostics:
    refused = pair.due & ~pair.good
    return DiagonalSecantDiagnostics(
        curvature=jnp.where(
            pair.due & jnp.isfinite(pair.y_p), pair.y_p, last.curvature
        ),
        num_secants=last.num_secants + pair.good.astype(jnp.int32),
        num_secant_skips=last.num_secant_skips + refused.astype(jnp.int32),
    )
