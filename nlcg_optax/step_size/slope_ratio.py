"""The slope-ratio step: a line search spread over the iterations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import (
    PyTree,
    accumulator_dtype,
    select,
    stored,
    stored_like,
    strong_types,
    times,
    zeros_like,
)
from nlcg_optax.step_size.slope_control import (
    ControlOptions,
    SlopeControlState,
    init_control,
)
from nlcg_optax.step_size.slope_judgment import Judgment, judge, stepped_back
from nlcg_optax.step_size.slope_steering import went_on, with_step
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.inner_products import vdots
from nlcg_optax.wrappers.signs import warn_of_the_sign
from nlcg_optax.xla import scalars

NAME = "scale_by_slope_ratio"
NAME_IN_PRESETS = f"{NAME} (also inside tuning_free_nlcg)"


class SlopeRatioDiagnostics(NamedTuple):
    """What `scale_by_slope_ratio` did, as scalars.

    Attributes:
      slope_ratio: the windowed ratio that steered the step size last.
      slope_step_size: the step size, before it is annealed.
      measured_slope: windowed slope where the steps began.
      inferred_slope: the same, from the change of the loss.
      num_steps_back: steps back so far, including those after non-finite values.
      num_not_finite: losses or gradients so far that were not finite.
      num_ascent_directions: updates so far along whose direction the loss rises. If it
        counts every update, the direction is sign-flipped.
      num_jumps: times so far that the loss stayed high after all steps back, and the
        search for the step size started again.
    """

    slope_ratio: jax.Array
    slope_step_size: jax.Array
    measured_slope: jax.Array
    inferred_slope: jax.Array
    num_steps_back: jax.Array
    num_not_finite: jax.Array
    num_ascent_directions: jax.Array
    num_jumps: jax.Array


class ScaleBySlopeRatioState(NamedTuple):
    """State of `scale_by_slope_ratio`.

    Attributes:
      direction_state: state of the nested direction.
      last_step: the last step, as returned, minus the part that steps back undid.
      control: the scalars.
      diagnostics: what was done.
    """

    direction_state: PyTree
    last_step: PyTree
    control: SlopeControlState
    diagnostics: SlopeRatioDiagnostics


def scale_by_slope_ratio(
    direction: optax.GradientTransformation,
    num_steps: int | jax.Array | None = None,
    *,
    target_ratio: float | jax.Array = -0.4,
    adaptation_rate: float | jax.Array = 0.3,
    window_decay: float | jax.Array = 0.6,
    hold_after: float | jax.Array = 0.4,
    initial_step_size: float | jax.Array = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies a direction by a step size found from ratios of slopes.

    A line search along d needs the slope at the end of a step, divided by that at its
    start. With the next gradient this ratio costs one inner product:

    .. math::
        r_t = \frac{d_t^\top g_{t+1}}{d_t^\top g_t}, \qquad
        \log \alpha_{t+1} = \log \alpha_t + \eta\, \mathrm{clip}\left(
        \log\frac{1 - r^*}{1 - r_t}, -1, c\right).

    On a parabola r is 1 at a step far too short, 0 at the minimizer and -1 at twice
    the minimizer. The secant through the two slopes is exact: the factor
    :math:`(1 - r^*) / (1 - r)` leads to the step at which r is :math:`r^*`. Here
    :math:`r_t` is the ratio of two averages of slopes over a window of steps. Nothing
    else is evaluated.

    The direction contains the noise of its own batch, so the slope measured at its
    start is too steep. A second start slope is inferred from the change of the loss:
    along a parabola :math:`f_{t+1} - f_t = (s_0 + s_1)/2`, with the slopes :math:`s_0`
    at the start of the step and :math:`s_1` at its end, along the step. In
    :math:`r_t` the start slope is the mean of both. The windows widen with the run, to
    a fifteenth of the steps so far, and :math:`\eta` falls in proportion.

    1. *Find.* The first step size is ``initial_step_size``, or less: by its slope, the
       step promises at most a hundredth of the loss. Each step alone decides, with
       :math:`\eta = 1` and c = 2.3, until r first falls below 0.3 and this is not
       noise: the change of the loss agrees with both slopes, the step promises 3 % of
       the loss, or 30 steps were taken.
    2. *Steer* as above, with c = 1, so that noise does not drive the step size up.
       While the averaged loss is more than 5 % above its minimum, r is below 0.3 and
       the slopes explain the rise, the step size falls instead of growing (the brake).
       With ``num_steps`` and once the windows widen, a rise of 30 % that is more than
       the noise of the average needs no explanation. With ``num_steps`` r shortens the
       step size in the first 24 steps only: the curvature of a network rises while its
       steps shrink, and r would shorten them for good (Roulet et al., "Stepping on the
       edge", 2024).
    3. With ``num_steps``, *hold* after the fraction ``hold_after`` of them (the brake
       then acts at twice the minimum), and *anneal*: a linear decay over all
       ``num_steps`` is multiplied on top. Later updates are zero, except that the last
       step may still be taken back in part.

    The promise of a step, its length times the slope, is at most ten times the average
    promise, and at most the loss (Polyak's step, for losses of zero or more). Once the
    loss was negative twice in a row, or fell to near zero while the slope was still as
    steep, the latter bound is the size of the loss or all that was gained since the
    first step, and the search continues with c = 0.7: the loss may be exponential. If
    the direction points uphill, the slope may cost 2 % of the loss.

    **A step back.** If the step just taken was far too long (r below -2 at a loss 5 %
    above the last and the averaged one, or r below zero at a loss above them by 1.5
    times their size), this update only goes back along it, to the minimizer of the
    parabola, and keeps 0.05 to 0.5 of the step. The step size shrinks by the same rule,
    but by the averaged slope if that of the step was less steep, and to a half at
    further steps back. The direction and its memory stay as before. A step back is the
    trial step of a line search, at the cost of one gradient.

    A rise is ignored as noise if it is less than twice the usual distance between the
    change of the loss and the mean of both slopes. It is ignored as a batch of harder
    examples if it is more than four times the slope at the end of the step: along a
    convex function the loss rises by no more than that slope. If the loss is no lower
    after eight steps back in a row, the loss itself has changed: the search starts
    again from there.

    A non-finite loss or gradient causes a step back to one half; the next in a row
    leaves a quarter of that, the next an eighth of the rest, and so on. These values
    are counted and never enter the state. At most three in a row also shorten later
    steps. Once the step size is found, the first one does not: it may be a bad batch.

    **Without** ``num_steps`` there is no end to plan for. The inferred slope alone is
    then the start slope of :math:`r_t`, and c = 0.5. The steps shrink as noise takes
    over. Nothing is annealed, so a run of known length ends at a lower loss with
    ``num_steps``.

    **A factor after it**, such as a schedule, shortens the steps whose slopes are
    measured. While the step size adapts, it offsets the factor; while it is held, it
    ignores a factor above one half.

    Source: the secant step of Moré and Thuente (1994, section 4) and the slope ratio
    of the strong Wolfe conditions (Nocedal and Wright, 2006, equation 3.7b).

    Args:
      direction: any Optax transformation whose updates are to be subtracted, such as
        `scale_by_nlcg`, ``optax.scale_by_adam()`` or a chain that clips first. It
        receives the extra arguments of ``update``.
      num_steps: number of updates of the run; None if it is not known.
      target_ratio: the :math:`r^*` above, below 1 and dimensionless.
      adaptation_rate: the :math:`\eta` above, before the windows widen, in (0, 1].
      window_decay: decay of the averages of slopes, before the windows widen, in
        [0, 1).
      hold_after: fraction of ``num_steps`` after which the step size is held.
      initial_step_size: the largest first step size, in the units of a parameter over
        those of the direction; above zero.

    Returns:
      A transformation whose ``update`` needs the extra argument ``value``, the loss of
      the same batch as the gradient. The updates are to be subtracted, as by
      ``optax.scale_by_learning_rate(1.)`` after it; a schedule and weight decay may
      come in between. The state holds one tree, the last step. An update adds two inner
      products of trees to the direction, and communicates scalars only.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, ``value`` is
        missing or not a scalar.
      TypeError: if ``direction`` is not a transformation.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1., 1000.]) * x**2)
      >>> tx = optax.chain(scale_by_slope_ratio(optax.scale_by_rms(), num_steps=100),
      ...                  optax.scale_by_learning_rate(1.))
      >>> @jax.jit
      ... def step(x, state):
      ...     value, grad = jax.value_and_grad(loss)(x)
      ...     updates, state = tx.update(grad, state, x, value=value)
      ...     return optax.apply_updates(x, updates), state
      >>> x = jnp.array([3., -2.])
      >>> state = tx.init(x)
      >>> for _ in range(100):
      ...     x, state = step(x, state)
      >>> bool(loss(x) < 1e-4)
      True
    """
    validation.check_transformation("direction", direction)
    if num_steps is not None:
        remedy = "; it is the number of updates of the run, not a learning rate"
        validation.check_positive_int("num_steps", num_steps, remedy=remedy)
    validation.check_below_one("target_ratio", target_ratio)
    validation.check_positive("adaptation_rate", adaptation_rate)
    validation.check_at_most("adaptation_rate", adaptation_rate, 1.0)
    validation.check_decay("window_decay", window_decay)
    validation.check_non_negative("hold_after", hold_after)
    validation.check_at_most("hold_after", hold_after, 1.0)
    validation.check_positive("initial_step_size", initial_step_size)
    inner = optax.with_extra_args_support(direction)
    options = ControlOptions(
        num_steps,
        target_ratio,
        adaptation_rate,
        window_decay,
        hold_after,
        initial_step_size,
    )

    return transformation(_Options(inner, options), _init, _update)


class _Options(NamedTuple):
    """The checked arguments of `scale_by_slope_ratio`."""

    direction: optax.GradientTransformationExtraArgs
    control: ControlOptions


def _init(options: _Options, params: PyTree) -> ScaleBySlopeRatioState:
    acc = accumulator_dtype(params)
    return ScaleBySlopeRatioState(
        direction_state=strong_types(options.direction.init(params)),
        last_step=zeros_like(params),
        control=init_control(options.control, acc),
        diagnostics=SlopeRatioDiagnostics(
            *(jnp.zeros([], acc) for _ in range(4)),
            *(jnp.zeros([], jnp.int32) for _ in range(4)),
        ),
    )


def _update(
    options: _Options,
    g: PyTree,
    state: ScaleBySlopeRatioState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleBySlopeRatioState]:
    validation.check_state(NAME, state, ScaleBySlopeRatioState)
    value = validation.require(
        NAME_IN_PRESETS,
        "value",
        extra_args.get("value"),
        "the loss at the gradient",
        extra_args,
    )
    validation.check_scalar_loss(NAME, value)
    validation.check_same_structure("updates", g, state.last_step)
    control = state.control
    loss = jnp.asarray(value).astype(control.value.dtype)
    # Updates are subtracted, so the slope of the step is the negative.
    (rise,) = vdots([(state.last_step, g)], dtype=loss.dtype)
    judgment = judge(control, loss, -rise)
    g = jax.tree.map(lambda x: jnp.where(judgment.finite, x, 0), g)
    u, direction_state = options.direction.update(
        g, state.direction_state, params, **extra_args
    )
    (ascent,) = vdots([(u, g)], dtype=loss.dtype)
    warn_of_the_sign(
        "direction",
        control.count,
        ascent < 0,
        "the loss rises along the negative of its output at the first update",
    )
    chosen, ratio, inferred = went_on(options.control, control, judgment)
    forward, factor = with_step(options.control, control, chosen, ascent)
    back, kept, factor = scalars.computed_once(judgment.back, judgment.kept, factor)

    def choose(if_back: PyTree, if_forward: PyTree) -> PyTree:
        return jax.tree.map(
            lambda b, f: jnp.where(back, b, stored(f, b.dtype)), if_back, if_forward
        )

    # If the direction overflows, no step is taken and its new memory is discarded.
    usable = jnp.isfinite(ascent)
    undone = jax.tree.map(lambda d: times(kept - 1, d).astype(d.dtype), state.last_step)
    left = jax.tree.map(lambda d: times(kept, d).astype(d.dtype), state.last_step)
    taken = jax.tree.map(lambda x: jnp.where(usable, times(factor, x), 0), u)
    new = ScaleBySlopeRatioState(
        direction_state=select(usable & ~back, direction_state, state.direction_state),
        last_step=choose(left, taken),
        control=choose(stepped_back(control, judgment), forward),
        diagnostics=_diagnostics(state, judgment, forward, ratio, inferred, ascent),
    )
    return stored_like(choose(undone, taken), g), new


def _diagnostics(
    state: ScaleBySlopeRatioState,
    judgment: Judgment,
    forward: SlopeControlState,
    ratio: jax.Array,
    inferred: jax.Array,
    ascent: jax.Array,
) -> SlopeRatioDiagnostics:
    last, back = state.diagnostics, judgment.back
    finite = judgment.finite & (back | jnp.isfinite(ascent))
    log_step_size = jnp.where(
        back,
        stepped_back(state.control, judgment).log_step_size,
        forward.log_step_size,
    )
    return SlopeRatioDiagnostics(
        slope_ratio=jnp.where(back, judgment.ratio, ratio),
        slope_step_size=jnp.exp(log_step_size),
        measured_slope=jnp.where(back, last.measured_slope, forward.start_slope),
        inferred_slope=jnp.where(back, last.inferred_slope, inferred),
        num_steps_back=last.num_steps_back + back.astype(jnp.int32),
        num_not_finite=last.num_not_finite + (~finite).astype(jnp.int32),
        num_ascent_directions=last.num_ascent_directions
        + (~back & (ascent < 0)).astype(jnp.int32),
        num_jumps=last.num_jumps + judgment.jumped.astype(jnp.int32),
    )
