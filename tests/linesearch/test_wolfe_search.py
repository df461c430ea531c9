"""The scalar line search against a replica in plain NumPy control flow."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax.linesearch import early_ends, wolfe_search
from nlcg_optax.linesearch.wolfe_search import WolfeRules

DELTA, SIGMA, GAMMA, RHO, THETA = 0.1, 0.9, 0.66, 5.0, 0.5


def replica(f0, s0, first, eps, probe, limit=40):
    """Yields ("value" or "slope", t), is sent (φ, φ'); returns whether it succeeded."""

    def accepts(t, v, s):
        wolfe = v <= f0 + DELTA * t * s0 and s >= SIGMA * s0
        approximate = (2 * DELTA - 1) * s0 >= s >= SIGMA * s0 and v <= f0 + eps
        return wolfe or approximate

    def secant(a, b):
        if a[2] == b[2]:
            return math.inf
        return (a[0] * b[2] - b[0] * a[2]) / (b[2] - a[2])

    def cubic(a, b):
        h = b[0] - a[0]
        mean = a[2] + b[2] - 3 * (b[1] - a[1]) / h
        square = mean * mean - a[2] * b[2]
        if square >= 0:
            root = math.sqrt(square)
            c = b[0] - h * (b[2] + root - mean) / (b[2] - a[2] + 2 * root)
            if a[0] < c < b[0]:
                return c
        return secant(a, b)

    used = 0
    t = first
    if probe:
        v, _ = yield ("value", t)
        used += 1
        if not math.isfinite(v):
            t = 0.1 * t
        else:
            bend = v - f0 - s0 * t
            best = -s0 * t * t / (2 * bend) if bend > 0 else math.inf
            t = min(max(best, 0.01 * first), 1000 * first)
    low, high = (0.0, f0, s0), None
    contracting = False

    def contraction():
        astray = not math.isfinite(high[1]) and low[0] == 0
        return low[0] + (0.1 if astray else THETA) * (high[0] - low[0])

    while high is None or contracting:  # bracket, and update's step U3
        if used >= limit:
            return False
        v, s = yield ("slope", t)
        used += 1
        finite = math.isfinite(v) and math.isfinite(s)
        if finite and accepts(t, v, s):
            return True
        if finite and s >= 0:
            high, contracting = (t, v, s), False
        elif finite and v <= f0 + eps:
            old, low = low, (t, v, s)
            if contracting:
                t = contraction()
            else:
                beyond = secant(old, low)
                t2 = beyond if beyond > t else RHO * t
                t = min(max(t2, 1.1 * t), 10 * t)
        else:
            high, contracting = (t, v, s), True
            t = contraction()

    while True:
        width = high[0] - low[0]
        ends = low, high
        plan = [("cubic", None)]
        while plan:
            kind, moved = plan.pop()
            if kind == "cubic":
                t = cubic(low, high)
            elif kind == "again":
                t = secant(ends[0], low) if moved == "low" else secant(ends[1], high)
            else:
                t = 0.5 * (low[0] + high[0])
            if not low[0] < t < high[0]:
                wide = high[0] - low[0] > GAMMA * width
                if kind == "cubic" or (kind == "again" and wide):
                    plan = [("middle", None)]
                elif kind == "middle":
                    return False
                continue
            if used >= limit:
                return False
            v, s = yield ("slope", t)
            used += 1
            finite = math.isfinite(v) and math.isfinite(s)
            if finite and accepts(t, v, s):
                return True
            if finite and s >= 0:
                high, moved = (t, v, s), "high"
            elif finite and v <= f0 + eps:
                low, moved = (t, v, s), "low"
            else:
                high, contracting = (t, v, s), True
                while contracting:
                    t = contraction()
                    if used >= limit or not low[0] < t:
                        return False
                    v, s = yield ("slope", t)
                    used += 1
                    finite = math.isfinite(v) and math.isfinite(s)
                    if finite and accepts(t, v, s):
                        return True
                    if finite and s >= 0:
                        high, contracting = (t, v, s), False
                    elif finite and v <= f0 + eps:
                        low = (t, v, s)
                    else:
                        high = (t, v, s)
                plan = []
                continue
            if kind == "cubic":
                plan = [("again", moved)]
            elif kind == "again" and high[0] - low[0] > GAMMA * width:
                plan = [("middle", None)]


# Moré and Thuente's first three, and worse.
FUNCTIONS = {
    "more_thuente_1": lambda t: -t / (t * t + 2),
    "more_thuente_2": lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4,
    "quartic_with_ripple": lambda t: (t - 1.7) ** 4 + 0.1 * np.sin(40 * t),
    "exponential": lambda t: np.exp(t) - 5 * t,
    "many_minima": lambda t: np.cos(t) - 0.01 * t - np.sin(3 * t),
    "undefined_beyond": lambda t: (t - 2) ** 2 if t < 3 else np.nan,
    "infinite_beyond": lambda t: (t - 0.01) ** 2 if t < 0.02 else np.inf,
    "kink": lambda t: abs(t - 1) + 0.01 * t,
    "far_away": lambda t: (1e-4 * t - 1) ** 2,
    "tiny_scale": lambda t: 1e-200 * ((t - 1) ** 2),
    # No point of these satisfies the conditions.
    "falls_forever": lambda t: -t - t * t,
    "falls_to_an_edge": lambda t: -t - t * t if t < 1 else np.nan,
}


def _slope(f, t):
    h = 1e-6 * max(1e-3, abs(t))
    return float((f(t + h) - f(t - h)) / (2 * h))


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_follows_the_replica_point_by_point(x64, name, first, probe):
    f, rules = FUNCTIONS[name], WolfeRules()
    f0, s0, eps = float(f(0.0)), _slope(f, 0.0), 1e-10
    search = replica(f0, s0, first, eps, probe)
    state = wolfe_search.start(*map(jnp.float64, (f0, s0, first, eps)), probe=probe)
    advance = jax.jit(wolfe_search.advance)
    expected, succeeded = next(search), None
    while succeeded is None:
        kind, t = expected
        assert bool(wolfe_search.is_running(state))
        assert (kind == "slope") == bool(wolfe_search.needs_gradient(state))
        np.testing.assert_allclose(float(state.step), t, rtol=1e-9)
        v, s = float(f(t)), _slope(f, t)
        state = advance(rules, state, jnp.float64(v), jnp.float64(s))
        try:
            expected = search.send((v, s))
        except StopIteration as stop:
            succeeded = stop.value
    assert succeeded == (not name.startswith("falls"))
    ends = wolfe_search.ACCEPTED if succeeded else wolfe_search.FAILED
    assert int(state.stage) == ends


def _search_at(slope0=-1.0, eps=0.0):
    return wolfe_search.start(
        jnp.float32(1.0), jnp.float32(slope0), jnp.float32(1.0), jnp.float32(eps)
    )


@pytest.mark.parametrize(
    ("step", "value", "slope", "wolfe", "approximate"),
    [
        (1.0, 0.90, 0.0, True, True),
        (1.0, 0.91, 0.0, False, True),  # no sufficient decrease, but flat and level
        (1.0, 0.90, -0.91, False, False),  # too steep
        (1.0, 0.90, -0.90, True, True),
        (1.0, 0.50, 0.9, True, False),  # past the minimizer: beyond (2δ-1) φ'(0)
        (1.0, 1.05, 0.0, False, True),  # within eps above the start
        (1.0, 1.20, 0.0, False, False),  # beyond eps
        (1.0, math.nan, 0.0, False, False),
        (1.0, 0.5, math.nan, False, False),
    ],
)
def test_conditions_are_those_of_the_papers(step, value, slope, wolfe, approximate):
    state, rules = _search_at(eps=0.1), WolfeRules()
    point = wolfe_search.Point(*map(jnp.float32, (step, value, slope)))
    assert bool(wolfe_search.satisfies_wolfe(rules, state, point)) == wolfe
    approx = wolfe_search.satisfies_approximate_wolfe(rules, state, point)
    assert bool(approx) == approximate

    state = state._replace(stage=jnp.int32(wolfe_search.EXPAND))
    accepted = wolfe_search.accepts(rules, state, point.value, point.slope)
    assert bool(accepted) == (wolfe or approximate)
    after = wolfe_search.advance(rules, state, point.value, point.slope)
    assert (int(after.stage) == wolfe_search.ACCEPTED) == bool(accepted)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_keeps_dtypes_and_shapes(dtype):
    state = wolfe_search.start(*(jnp.asarray(v, dtype) for v in (1.0, -1.0, 1.0, 0.0)))
    new = wolfe_search.advance(WolfeRules(), state, jnp.asarray(0.7, dtype), dtype(0))
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)


@pytest.mark.parametrize("value", [1e8, 1e8 + 8.0, 1e8 - 8.0])
def test_a_bend_within_rounding_has_no_minimizer(value):
    # float32 has units of 8 at 1e8; the slope alone would ask for a thousandfold step.
    state = wolfe_search.start(*map(jnp.float32, (1e8, -1e-3, 0.5, 0.0)))
    state = wolfe_search.advance(
        WolfeRules(), state, jnp.float32(value), jnp.float32(0.0)
    )
    assert float(state.step) == 0.5
    assert bool(wolfe_search.needs_gradient(state))


def test_gives_up_when_evaluations_are_spent():
    # It descends for ever, never by enough.
    rules = WolfeRules(max_evaluations=7)
    state = _search_at()
    for _ in range(7):
        assert bool(wolfe_search.is_running(state))
        value = 1.0 - jnp.float32(1e-3) * state.step
        state = wolfe_search.advance(rules, state, value, jnp.float32(-1.0))
    assert int(state.stage) == wolfe_search.FAILED
    assert int(state.num_evaluations) == 7


def test_never_ends_on_values_that_are_not_finite():
    state = _search_at()
    steps = []
    while bool(wolfe_search.is_running(state)):
        steps.append(float(state.step))
        state = wolfe_search.advance(
            WolfeRules(), state, jnp.float32(jnp.nan), jnp.float32(jnp.nan)
        )
    assert int(state.stage) == wolfe_search.FAILED
    assert len(steps) <= 50
    assert all(b < a for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_values_that_slopes_contradict_are_noise(x64, noise):
    rng = np.random.default_rng(0)
    found = []
    for curvature, power in itertools.product((0.1, 1.0, 10.0), (1.5, 2.0, 4.0)):
        low, high = np.sort(rng.uniform(-1e-3, 1e-3, 2)) + 1e-2
        ends = [
            (
                t,
                1 + curvature * abs(t) ** power / power + noise * sign,
                curvature * np.sign(t) * abs(t) ** (power - 1),
            )
            for t, sign in ((low, -1), (high, 1))
        ]
        state = wolfe_search.start(*map(jnp.float64, (2.0, -1.0, 1.0, 0.0)))
        state = state._replace(bracket=jnp.asarray(ends))
        found.append(bool(early_ends.is_noise(state)))
    assert all(found) if noise else not any(found)
