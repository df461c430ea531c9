"""The Hager-Zhang line search as a state machine on scalars.

`advance` (or, where the stage is known, `advance_probe` and `advance_point`) takes the
state and what was measured at `state.step`, and returns the state with the next step to
measure. It neither evaluates the objective nor loops, so that a transformation may loop
it around ``value_fn`` and `minimize` may merge it with its outer iteration in one loop
with one evaluation.

Sources: [HZ05] W. W. Hager, H. Zhang, "A new conjugate gradient method with guaranteed
descent and an efficient line search", SIAM J. Optim. 16, 2005; [HZ06] the same,
"Algorithm 851: CG_DESCENT, a conjugate gradient method with guaranteed descent", ACM
Trans. Math. Softw. 32, 2006.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Stages: the purpose of measuring `SearchState.step`.
PROBE = 0  # a value alone, for the parabola of the quadratic step
EXPAND = 1  # there is no upper end yet [HZ05, bracket]
CONTRACT = 2  # the upper end lies too high although it descends [HZ05, step U3]
SECANT = 3  # first secant step of secant² [HZ05]
SECANT_AGAIN = 4  # second secant step of secant²
MIDPOINT = 5  # secant² shrank the bracket too little
ACCEPTED = 6  # the last step that was measured satisfies the conditions
FAILED = 7  # it does not, and there is no room or no budget left

ROUNDING = 10.0  # units of rounding of φ; a bend or a gain within them means nothing


class WolfeRules(NamedTuple):
    """Parameters of the line search; Python numbers, or scalars outside of `minimize`.

    Attributes:
      sufficient_decrease: δ of both Wolfe conditions, in (0, 1/2).
      max_slope_ratio: σ of both Wolfe conditions, in [δ, 1).
      shrinkage: γ; if secant² does not shrink the bracket by it, the midpoint is taken.
      expansion: ρ; factor of the step while there is no upper end and the secant
        points nowhere.
      max_extrapolation: a step by secant from one side is at most this many times
        longer than the last.
      max_quadratic_step: the minimizer of the probe's parabola is taken up to this many
        times the probe.
      contraction: θ; where in the bracket to go when its upper end lies too high.
      non_finite_contraction: the same when its upper end is not finite and its lower
        end is still the start.
      max_evaluations: limit on the values and gradients of a search, at least 2.
    """

    sufficient_decrease: Any = 0.1
    max_slope_ratio: Any = 0.9
    shrinkage: Any = 0.66
    expansion: Any = 5.0
    max_extrapolation: Any = 10.0
    max_quadratic_step: Any = 1000.0
    contraction: Any = 0.5
    non_finite_contraction: Any = 0.1
    max_evaluations: Any = 40


class Point(NamedTuple):
    """One point of φ(t) = f(x + t d).

    Attributes:
      step: t.
      value: φ(t).
      slope: φ'(t).
    """

    step: jax.Array
    value: jax.Array
    slope: jax.Array


class SearchState(NamedTuple):
    """State of one line search; scalars and two points.

    Attributes:
      stage: one of the stages of this module.
      step: the step to measure next or, at the end, the last one measured.
      start_value: φ(0).
      start_slope: φ'(0).
      tolerance: ε_k, how far above φ(0) an approximate Wolfe point may lie.
      bracket: a row for each end: step, value and slope. At the lower end φ is at most
        φ(0) + ε_k and descends; at the upper end it ascends or, while contracting,
        lies too high or is not finite.
      width: length of the bracket at the start of the last secant².
      num_evaluations: points measured in this search.
    """

    stage: jax.Array
    step: jax.Array
    start_value: jax.Array
    start_slope: jax.Array
    tolerance: jax.Array
    bracket: jax.Array
    width: jax.Array
    num_evaluations: jax.Array


def start(
    value: jax.Array,
    slope: jax.Array,
    step: jax.Array,
    tolerance: jax.Array,
    *,
    probe: bool | jax.Array = True,
) -> SearchState:
    """Starts a line search.

    Args:
      value: φ(0), a real floating-point scalar.
      slope: φ'(0), negative, of the same dtype.
      step: the first step to measure, positive.
      tolerance: ε_k of the approximate Wolfe conditions, not negative.
      probe: whether to measure the value alone at first and then go to the minimizer
        of the parabola (quadratic step, [HZ06, I1]).

    Returns:
      The state whose ``step`` is to be measured.

    Examples:
      >>> import jax.numpy as jnp
      >>> s = start(jnp.float32(1.), jnp.float32(-2.), jnp.float32(.5), jnp.float32(0.))
      >>> s = advance(WolfeRules(), s, jnp.float32(.25), jnp.float32(0.))
      >>> s.step  # (1 - t)²: the parabola is the function
      Array(1., dtype=float32)
      >>> s = advance(WolfeRules(), s, jnp.float32(0.), jnp.float32(0.))
      >>> bool(s.stage == ACCEPTED)
      True
    """
    dtype = jnp.result_type(value)

    def scalar(x: Any) -> jax.Array:
        return jnp.asarray(x).astype(dtype)

    start_value, start_slope = scalar(value), scalar(slope)
    return SearchState(
        stage=jnp.where(probe, PROBE, EXPAND).astype(jnp.int32),
        step=scalar(step),
        start_value=start_value,
        start_slope=start_slope,
        tolerance=scalar(tolerance),
        bracket=jnp.stack(
            [scalar(0), start_value, start_slope, *[scalar(jnp.inf)] * 3]
        ).reshape(2, 3),
        width=jnp.full([], jnp.inf, dtype),
        num_evaluations=jnp.zeros([], jnp.int32),
    )


def is_running(state: SearchState) -> jax.Array:
    """Whether `state.step` is still to be measured."""
    return state.stage < ACCEPTED


def needs_gradient(state: SearchState) -> jax.Array:
    """Whether the slope at `state.step` is needed and not just the value."""
    return state.stage != PROBE


def satisfies_wolfe(rules: WolfeRules, state: SearchState, point: Point) -> jax.Array:
    """The Wolfe conditions: φ(t) <= φ(0) + δ t φ'(0) and φ'(t) >= σ φ'(0) [HZ05, T1].

    A value or slope that is not a number satisfies nothing.
    """
    ceiling = (
        state.start_value + rules.sufficient_decrease * point.step * state.start_slope
    )
    flat_enough = point.slope >= rules.max_slope_ratio * state.start_slope
    return (point.value <= ceiling) & flat_enough


def satisfies_approximate_wolfe(
    rules: WolfeRules, state: SearchState, point: Point
) -> jax.Array:
    """Approximate Wolfe: (2δ-1)φ'(0) >= φ'(t) >= σφ'(0), φ(t) <= φ(0) + ε_k [T2].

    The first inequality is the sufficient decrease of the parabola through φ(0),
    φ'(0) and φ'(t): it holds to the last digits where φ(t) - φ(0) is round-off.
    """
    upper = (2 * rules.sufficient_decrease - 1) * state.start_slope
    lower = rules.max_slope_ratio * state.start_slope
    level = point.value <= state.start_value + state.tolerance
    return (point.slope <= upper) & (point.slope >= lower) & level


def accepts(
    rules: WolfeRules, state: SearchState, value: jax.Array, slope: jax.Array
) -> jax.Array:
    """Whether either set of conditions holds at ``state.step``, where all is finite.

    Args:
      rules: parameters.
      state: a running search that `needs_gradient`.
      value: φ(state.step), of the dtype of the state.
      slope: φ'(state.step), likewise.

    Returns:
      A boolean scalar: whether `advance_point` will end in ACCEPTED, computed with
      fewer operations than the new state.

    Examples:
      >>> import jax.numpy as jnp
      >>> s = start(*map(jnp.float32, (1., -2., 1., 0.)), probe=False)
      >>> bool(accepts(WolfeRules(), s, jnp.float32(0.), jnp.float32(0.)))
      True
    """
    point = Point(state.step, value, slope)
    satisfied = satisfies_wolfe(rules, state, point)
    satisfied |= satisfies_approximate_wolfe(rules, state, point)
    return satisfied & jnp.isfinite(value) & jnp.isfinite(slope)


def advance(
    rules: WolfeRules, state: SearchState, value: jax.Array, slope: jax.Array
) -> SearchState:
    """Reads what was measured at ``state.step`` and decides the next step.

    Args:
      rules: parameters.
      state: a running search.
      value: φ(state.step), of the dtype of the state.
      slope: φ'(state.step); not read in the stage PROBE.

    Returns:
      The state with the next ``step`` and ``stage``. In the stages ACCEPTED and
      FAILED ``step`` is the one just measured.
    """
    return jax.tree.map(
        lambda p, q: jnp.where(needs_gradient(state), p, q),
        advance_point(rules, state, value, slope),
        advance_probe(rules, state, value),
    )


def advance_probe(
    rules: WolfeRules, state: SearchState, value: jax.Array
) -> SearchState:
    """`advance` in the stage PROBE, for which the value is enough.

    Examples:
      >>> import jax.numpy as jnp
      >>> s = start(*map(jnp.float32, (1., -2., .5, 0.)))
      >>> advance_probe(WolfeRules(), s, jnp.float32(.25)).step  # of (1 - t)²
      Array(1., dtype=float32)
    """
    return _within_limits(rules, state, _after_probe(rules, state, value))


def advance_point(
    rules: WolfeRules, state: SearchState, value: jax.Array, slope: jax.Array
) -> SearchState:
    """`advance` in every other stage.

    Examples:
      >>> import jax.numpy as jnp
      >>> s = start(*map(jnp.float32, (1., -2., 1., 0.)), probe=False)
      >>> s = advance_point(WolfeRules(), s, jnp.float32(0.), jnp.float32(0.))
      >>> bool(s.stage == ACCEPTED)
      True
    """
    point = Point(state.step, value, slope)
    return _within_limits(rules, state, _after_point(rules, state, point))


def _within_limits(
    rules: WolfeRules, state: SearchState, new: SearchState
) -> SearchState:
    """Fails if no measurement is left, or the next one would add nothing."""
    count = state.num_evaluations + 1
    # The step may be rounded to the lower end.
    running = (count < rules.max_evaluations) & (new.step > new.bracket[0, 0])
    failed = (new.stage < ACCEPTED) & ~(running & jnp.isfinite(new.step))
    return new._replace(
        stage=jnp.where(failed, FAILED, new.stage).astype(jnp.int32),
        step=jnp.where(failed, state.step, new.step),
        num_evaluations=count,
    )


def _after_probe(
    rules: WolfeRules, state: SearchState, value: jax.Array
) -> SearchState:
    """Goes to the minimizer of the parabola through φ(0), φ'(0) and φ(probe).

    If the parabola bends by no more than rounding, its minimizer is noise, and the
    probe itself is next.
    """
    probe = state.step
    longest = rules.max_quadratic_step * probe
    bend = value - state.start_value - state.start_slope * probe
    step = jnp.where(
        bend > 0, -state.start_slope * probe * (probe / (2 * bend)), longest
    )
    step = jnp.clip(step, 0.01 * probe, longest)
    size = jnp.maximum(jnp.abs(value), jnp.abs(state.start_value))
    rounding = ROUNDING * float(jnp.finfo(value.dtype).eps) * size
    step = jnp.where(jnp.abs(bend) > rounding, step, probe)
    step = jnp.where(jnp.isfinite(value), step, rules.non_finite_contraction * probe)
    return state._replace(stage=jnp.int32(EXPAND), step=step)


def _after_point(rules: WolfeRules, state: SearchState, point: Point) -> SearchState:
    accepted = accepts(rules, state, point.value, point.slope)
    finite = jnp.isfinite(point.value) & jnp.isfinite(point.slope)
    ascends = finite & (point.slope >= 0)
    level = point.value <= state.start_value + state.tolerance
    is_low = finite & ~ascends & level
    # The slope of an infinite value is infinite, as at first: `minimize` returns the
    # bracket, where NaN would alarm `jax.debug_nans` without an error of the caller.
    slope = jnp.where(jnp.isinf(point.value), jnp.inf, point.slope)
    point = point._replace(slope=slope)
    is_replaced = jnp.array([[True], [False]]) == is_low
    both = jnp.stack([*point, *point]).reshape(2, 3)
    bracket = jnp.where(is_replaced, both, state.bracket)
    low, high = Point(*bracket[0]), Point(*bracket[1])
    is_proper = ascends | (is_low & (state.stage != EXPAND) & (state.stage != CONTRACT))
    width = high.step - low.step

    # secant² and what follows it, once both ends are proper.
    replaced = Point(*jnp.where(is_low, state.bracket[0], state.bracket[1]))
    again = _secant(replaced, point)
    to_again = (state.stage == SECANT) & _inside(again, low, high)
    closing = (state.stage == SECANT) | (state.stage == SECANT_AGAIN)
    too_wide = closing & (width > rules.shrinkage * state.width)
    secant = _cubic_or_secant(low, high)
    to_midpoint = ~to_again & (too_wide | ~_inside(secant, low, high))
    midpoint = low.step + 0.5 * width
    proper_step = jnp.where(to_again, again, jnp.where(to_midpoint, midpoint, secant))
    proper_stage = jnp.where(
        to_again, SECANT_AGAIN, jnp.where(to_midpoint, MIDPOINT, SECANT)
    )
    starts_anew = is_proper & ~to_again & ~too_wide

    # Beyond the last step while nothing closes the bracket from above.
    beyond = jnp.where(again > point.step, again, rules.expansion * point.step)
    beyond = jnp.clip(beyond, 1.1 * point.step, rules.max_extrapolation * point.step)

    # Toward the lower end if the upper one lies too high or is not finite. A first step
    # may be too long by orders of magnitude, a later one not.
    astray = ~jnp.isfinite(high.value) & (low.step == 0)
    contraction = jnp.where(astray, rules.non_finite_contraction, rules.contraction)
    nearer = low.step + contraction * width

    expands = is_low & (state.stage == EXPAND)
    step = jnp.where(is_proper, proper_step, jnp.where(expands, beyond, nearer))
    stage = jnp.where(is_proper, proper_stage, jnp.where(expands, EXPAND, CONTRACT))
    return state._replace(
        stage=jnp.where(accepted, ACCEPTED, stage).astype(jnp.int32),
        step=jnp.where(accepted, point.step, step),
        bracket=bracket,
        width=jnp.where(starts_anew, width, state.width),
    )


def _inside(step: jax.Array, low: Point, high: Point) -> jax.Array:
    return (step > low.step) & (step < high.step)


def _secant(a: Point, b: Point) -> jax.Array:
    """The zero of the line through φ'(a) and φ'(b) [HZ05]; not finite if parallel."""
    return a.step - a.slope * ((b.step - a.step) / (b.slope - a.slope))


def _cubic_or_secant(low: Point, high: Point) -> jax.Array:
    """The minimizer of the cubic through both ends, or the secant if it has none.

    J. Nocedal, S. J. Wright, "Numerical Optimization", 2006, equation (3.59), with
    all slopes multiplied by the width.
    """
    width = high.step - low.step
    falls, rises = width * low.slope, width * high.slope
    mean = falls + rises - 3 * (high.value - low.value)
    square = mean * mean - falls * rises
    root = jnp.sqrt(jnp.maximum(square, 0))
    cubic = high.step - width * ((rises + root - mean) / (rises - falls + 2 * root))
    usable = (square >= 0) & _inside(cubic, low, high)
    return jnp.where(usable, cubic, _secant(low, high))
