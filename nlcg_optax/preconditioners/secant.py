"""Diagonal BFGS: a diagonal curvature estimate kept up to date by secant pairs."""

import functools
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
    compute_dtype,
    difference,
    times,
    zeros_like,
)
from nlcg_optax.preconditioners.diagonal_scaling import abs_squared, divide_by_diagonal
from nlcg_optax.trees.inner_products import named_vdots
from nlcg_optax.xla.in_place import flags_after, settle

SECANTS = ("difference", "hvp")
MIN_CURVATURE_COSINE = 1e-6  # below it dᵀHd is rounding, not curvature


class DiagonalSecantDiagnostics(NamedTuple):
    """What `scale_by_diagonal_secant` did, as scalars.

    Attributes:
      curvature: ``yᵀp`` of the last secant pair that was looked at.
      num_secants: pairs taken into h so far.
      num_secant_skips: pairs looked at and refused so far.
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
      g_g: squared norm of the previous gradient.
      d_g: its product with the direction before, or the empty tuple if not needed.
      diagonal: the curvature estimate h, like the parameters.
      diagnostics: counters.
    """

    count: jax.Array  # type: ignore[assignment]
    grad_prev: PyTree
    params_prev: PyTree
    g_g: jax.Array
    d_g: PyTree
    diagonal: PyTree
    diagnostics: DiagonalSecantDiagnostics

    @property
    def guards_itself(self) -> bool:
        """A gradient that is not finite leaves it alone: `scale_by_nlcg` need not."""
        return True

    def products_taken(
        self, before: "ScaleByDiagonalSecantState"
    ) -> dict[str, jax.Array]:
        """Products with the gradient of an update, which are not to be taken again.

        Args:
          before: the state before that update.

        Returns:
          Scalars by the names of `scale_by_nlcg`. The squared norm is infinite where
          the gradient was refused, at which the count stands still.
        """
        last = jnp.iinfo(self.count.dtype).max
        refused = (self.count == before.count) & (self.count < last)
        products = {"g_g": jnp.where(refused, jnp.inf, self.g_g)}
        if not isinstance(self.d_g, tuple):
            products["d_g"] = self.d_g
        return products


def scale_by_diagonal_secant(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    secant: Literal["difference", "hvp"] = "difference",
    refresh_period: int = 1,
    reset_period: int | None = None,
    spectral_scaling: bool = False,
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

    - ``secant="difference"``, the paper's: :math:`y = g_t - g_{t-1}`, of two
      different mini-batches, and :math:`p = \eta_t b\, d_{t-1}` with the learning
      rate :math:`\eta_t`, the multiplier b of the step controller and the previous
      direction. The pair is refused when :math:`y^\top p < \epsilon` or
      :math:`p^\top h p < \epsilon`. With ``learning_rate=None``, p is the difference
      of the parameters, whatever step followed, at the cost of a copy of them.
    - ``secant="hvp"``: :math:`p = d_{t-1}` and :math:`y = H p` by a Hessian-vector
      product on the *same* batch, with :math:`\epsilon = 0`. It does not depend on
      the length of p. The pair is refused unless
      :math:`d^\top H d > 10^{-6} \|d\| \|H d\|`.

    Args:
      learning_rate: a number or schedule, the same as that of the step; only for
        ``secant="difference"``.
      secant: where y comes from.
      refresh_period: look at a pair every so many steps. The product with the Hessian
        is then paid only at those steps. Where ``update`` is given ``refresh=True`` or
        ``refresh=False``, that decides instead.
      reset_period: set h to one every so many steps; the paper's program has 100,
        switched off. None for never.
      spectral_scaling: replace the last term by
        :math:`(y^2 + \epsilon) / (y^\top y + \epsilon)`.
      eps: the :math:`\epsilon` above, for ``secant="difference"``.
      damping: added to h before the division.

    Returns:
      A transformation; nest it as ``preconditioner`` of `scale_by_nlcg`. Its
      ``update`` takes the extra arguments ``previous_direction`` (from
      `scale_by_nlcg`), ``step_multiplier`` (optional, from `feed_step_multiplier`),
      and ``value_fn`` (or ``hvp_fn(params, vector)``) for ``secant="hvp"``. A gradient
      that is not finite, or the square of whose norm is not, leaves the state alone.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.

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
    validation.check_choice("secant", secant, SECANTS)
    validation.check_positive_int("refresh_period", refresh_period)
    if reset_period is not None:
        validation.check_positive_int("reset_period", reset_period)
    validation.check_positive("eps", eps)
    validation.check_non_negative("damping", damping)
    if learning_rate is not None and secant == "hvp":
        raise ValueError(
            f"learning_rate={learning_rate!r} is of no use with secant='hvp', which "
            "does not depend on the length of the step; leave it None"
        )
    from_params = secant == "difference" and learning_rate is None
    from_grads = secant == "difference"

    def init_fn(params: PyTree) -> ScaleByDiagonalSecantState:
        acc = accumulator_dtype(params)
        return ScaleByDiagonalSecantState(
            count=jnp.zeros([], jnp.int32),
            diagonal=jax.tree.map(
                lambda p: jnp.ones_like(p, dtype=jnp.finfo(p.dtype).dtype), params
            ),
            grad_prev=zeros_like(params) if from_grads else (),
            params_prev=zeros_like(params) if from_params else (),
            g_g=jnp.zeros([], acc),
            d_g=() if from_params else jnp.zeros([], acc),
            diagnostics=DiagonalSecantDiagnostics(
                curvature=jnp.zeros([], acc),
                num_secants=jnp.zeros([], jnp.int32),
                num_secant_skips=jnp.zeros([], jnp.int32),
            ),
        )

    require = functools.partial(validation.require, "scale_by_diagonal_secant")

    def step_taken(
        state: ScaleByDiagonalSecantState, params: PyTree, extra_args: dict[str, Any]
    ) -> tuple[PyTree, jax.Array]:
        """A direction and the length in which p is that many times the direction."""
        one = jnp.ones([], state.diagnostics.curvature.dtype)
        if from_params:
            require("params", params, "learning_rate is None")
            return difference(params, state.params_prev), one
        direction = require(
            "previous_direction",
            extra_args.get("previous_direction"),
            "scale_by_nlcg passes it to its preconditioner",
        )
        if secant == "hvp":
            return direction, one
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        rate = rate * extra_args.get("step_multiplier", 1.0)
        return direction, jnp.asarray(rate).astype(one.dtype)

    def update_fn(
        updates: PyTree,
        state: ScaleByDiagonalSecantState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByDiagonalSecantState]:
        g, h = updates, state.diagonal
        validation.check_same_structure("updates", g, h)
        acc = state.diagnostics.curvature.dtype
        d, length = step_taken(state, params, extra_args)
        refresh = is_due(state.count, refresh_period, extra_args)
        due = (state.count > 0) & refresh
        if reset_period is not None:
            reset = (state.count > 0) & (state.count % reset_period == 0)
            h = jax.tree.map(lambda x: jnp.where(reset, jnp.ones_like(x), x), h)
            due &= ~reset

        if from_grads:
            y = difference(g, state.grad_prev)
        else:
            product = product_fn(
                "scale_by_diagonal_secant", "hessian", params, extra_args
            )
            y = if_due(
                refresh if isinstance(refresh, bool) else due,
                lambda: optax.tree.cast_like(product(d), params),
                lambda: zeros_like(params),
            )

        pairs = {"g_g": (g, g), "y_d": (y, d), "h_d_d": (jax.tree.map(times, h, d), d)}
        if not from_params:
            pairs["d_g"] = (d, g)
        if spectral_scaling or not from_grads:
            pairs["y_y"] = (y, y)
        if not from_grads:
            pairs["d_d"] = (d, d)
        products = named_vdots(pairs, dtype=acc)
        g_g = products["g_g"]
        ys, php = length * products["y_d"], length * length * products["h_d_d"]
        offset = jnp.asarray(eps, acc) if from_grads else jnp.zeros([], acc)
        if from_grads:
            good = (ys >= offset) & (php >= offset)
        else:
            norms = jnp.sqrt(products["d_d"]) * jnp.sqrt(products["y_y"])
            good = (ys > MIN_CURVATURE_COSINE * norms) & (php > 0)
        last = products["y_y"] if spectral_scaling else ys
        finite = jnp.isfinite(g_g)
        due &= finite
        good &= due & jnp.isfinite(ys) & jnp.isfinite(php) & jnp.isfinite(last)
        square, old, new, good, finite = settle(
            length * length,
            1 / jnp.where(good, php + offset, 1),
            1 / jnp.where(good, last + offset, 1),
            good,
            finite,
        )
        if from_grads:
            # -y, so that XLA does not keep y in memory between its two uses.
            y = difference(state.grad_prev, g)

        def refreshed(h_: jax.Array, d_: jax.Array, y_: jax.Array) -> jax.Array:
            dtype = compute_dtype(h_.dtype)
            scalars = (square, old, new, offset)
            wide, s, o, n, e = (x.astype(dtype) for x in (h_, *scalars))
            p2, y2 = (abs_squared(x).astype(dtype) for x in (d_, y_))
            value = jnp.abs(wide - (wide**2 * s * p2 + e) * o + (y2 + e) * n)
            return jnp.where(good & jnp.isfinite(value), value, wide).astype(h_.dtype)

        h = jax.tree.map(refreshed, h, d, y)
        first = state.count == 0

        def remember(value: PyTree, old_value: PyTree) -> PyTree:
            return jax.tree.map(
                lambda v, o, known: jnp.where(known, v.astype(o.dtype), o),
                value,
                old_value,
                flags_after(finite, h),
            )

        # One after the other, so that XLA can write each new array over an old one.
        grad_prev = remember(g, state.grad_prev) if from_grads else ()
        active = flags_after(~first, grad_prev) if from_grads else ~first
        z = divide_by_diagonal(g, h, damping, active=active)
        return z, ScaleByDiagonalSecantState(
            count=jnp.where(finite, optax.safe_increment(state.count), state.count),
            diagonal=h,
            grad_prev=grad_prev,
            params_prev=remember(params, state.params_prev) if from_params else (),
            g_g=jnp.where(finite, g_g, state.g_g),
            d_g=(() if from_params else jnp.where(finite, products["d_g"], state.d_g)),
            diagnostics=DiagonalSecantDiagnostics(
                curvature=jnp.where(
                    due & jnp.isfinite(ys), ys, state.diagnostics.curvature
                ),
                num_secants=state.diagnostics.num_secants + good.astype(jnp.int32),
                num_secant_skips=state.diagnostics.num_secant_skips
                + (due & ~good).astype(jnp.int32),
            ),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
