"""Proves the properties of Optax's own common tests for every row of the table."""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from nlcg_optax import (
    diagnostics,
    scale_by_diagonal_secant,
    scale_by_hager_zhang_linesearch,
)
from tests.contract.running import (
    AMPLIFYING,
    FAST,
    OF_SCALARS,
    WIDE,
    compiled_step,
    count_compilations,
    each_row,
    extra_args,
    make_step,
    small_loss,
    small_params,
    types,
)
from tests.contract.table import (
    PRESETS,
    RATE,
    ROWS,
    SEARCH_EXTRAS,
    STEP_SIZES,
    Row,
)


@each_row(fast=WIDE)
def test_unknown_extra_arguments_are_accepted_and_change_nothing(row):
    tx = row.make()
    params = small_params()

    def update(grad, state, params, **unknown):
        known = extra_args(row, small_loss(params), grad, small_loss)
        return tx.update(grad, state, params, **known, **unknown)

    def program(**unknown):
        jaxpr = jax.make_jaxpr(functools.partial(update, **unknown))
        text = str(jaxpr(params, tx.init(params), params))
        return re.sub(r" at 0x[0-9a-f]+", "", text)

    # Not only the same numbers: the same program.
    assert program(an_unknown_extra_argument=1) == program()


@each_row(without=OF_SCALARS)
def test_one_program_serves_all_steps_and_keeps_the_types(row):
    # jax.typeof holds the shape, the dtype, the weak type and the sharding.
    tx, step = compiled_step(row.name)
    params = small_params()
    state = tx.init(params)
    carry = step(params, state)
    assert types(carry) == types((params, state))
    chex.assert_trees_all_equal_structs(carry[1], state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(carry[1]))
    with count_compilations() as later:
        for _ in range(9):
            carry = step(*carry)
    assert later == []
    assert types(jax.jit(tx.init)(params)) == types(state)


@each_row(fast=WIDE)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_state_is_the_carry_of_a_loop_and_of_a_conditional(row, dtype, x64):
    # Both refuse any difference of structure, shape, dtype or weak type; no compilation
    # is needed to see whether they do.
    tx = row.make()
    params = small_params(dtype)
    step = make_step(row, tx, small_loss)

    def either(take, carry):
        return jax.lax.cond(take, lambda c: step(*c), lambda c: c, carry)

    def run(takes, params, state):
        body = lambda carry, take: (either(take, carry), None)
        return jax.lax.scan(body, (params, state), takes)[0]

    state = tx.init(params)
    out = jax.eval_shape(run, jnp.array([True, False]), params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, (params, state))


# Optax's own line searches cannot be asked (their `init` looks at the dtype of a leaf,
# and `map_params` gives them a tree without leaves).
UNMAPPED = {
    **dict.fromkeys(
        ("zoom", "backtracking", "backtracking_rms"),
        "Optax's own searches look at the dtype of a leaf",
    ),
    **{
        row.name: "has no direction with a memory"
        for row in ROWS
        if row.name.endswith(" alone") or row.name == "hager_zhang of L-BFGS"
    },
}


@each_row(without=UNMAPPED | OF_SCALARS)
def test_map_params_finds_the_parameters_in_the_state(row):
    tx, step = compiled_step(row.name)
    carry = small_params(), tx.init(small_params())
    for _ in range(2):  # a virtual batch takes its first step at the second
        carry = step(*carry)
    state = carry[1]
    same = optax.tree.map_params(tx, lambda leaf: leaf, state)
    chex.assert_trees_all_equal(same, state)
    # The scalars are no parameters: only the leaves of parameter trees are touched.
    zeros = optax.tree.map_params(tx, jnp.zeros_like, state)
    assert optax.tree.norm(optax.tree.get(state, "direction")) > 0
    assert optax.tree.norm(optax.tree.get(zeros, "direction")) == 0
    chex.assert_trees_all_equal(diagnostics(zeros), diagnostics(state))
    assert diagnostics(zeros)["grad_norm"] > 0


@each_row(fast=WIDE, without=OF_SCALARS)
def test_zero_gradients_move_nothing(row):
    """Un-jitted: an operation that divides by them is seen as well."""
    tx = row.make()
    params = small_params()
    zeros = optax.tree.zeros_like(params)

    def flat(params):
        return 0.0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) + 1.0

    known = extra_args(row, jnp.float32(1.0), zeros, flat)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(zeros, state, params, **known)
        if "weight_decay" in row.kwargs:
            factor = -RATE * row.kwargs["weight_decay"]
            expected = optax.tree.scale(factor, params)
            # One rounding of float32.
            chex.assert_trees_all_close(updates, expected, rtol=1e-6)
        else:
            chex.assert_trees_all_equal(updates, zeros)
    # The infinities that are meant to be there are bounds, which no state holds.
    chex.assert_tree_all_finite(state)


def test_a_none_gradient_of_a_present_parameter_is_named():
    tx, _ = compiled_step("pr+")
    params = small_params()
    with pytest.raises(ValueError, match="updates has the tree structure"):
        tx.update({**params, "b": None}, tx.init(params), params)


WHOLE = {
    row.name: "is built without arguments"
    for row in ROWS
    if not inspect.signature(row.factory).parameters
}


@each_row(without=WHOLE | OF_SCALARS, fast=[name for name in FAST if name != "search"])
def test_hyperparameters_can_be_injected(row, request):
    if row.name.startswith(AMPLIFYING):
        request.getfixturevalue("x64")
    # Injected numbers enter as arrays, also where the update is traced; plain ones are
    # constants, so that the two differ by some roundings after two steps.
    params = small_params(float)
    plain = row.make()
    functions = {"likelihood"} & set(inspect.signature(row.factory).parameters)
    factory = optax.inject_hyperparams(row.factory, static_args=functions)
    injected = row._replace(factory=factory).make()
    one, other = (params, plain.init(params)), (params, injected.init(params))
    step = make_step(row, plain, small_loss)
    step_injected = make_step(row, injected, small_loss)
    traced = (
        jax.eval_shape(injected.init, params),
        *jax.eval_shape(step_injected, *other),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(traced, (other[1], *other))
    for _ in range(2):
        one, other = step(*one), step_injected(*other)
    chex.assert_trees_all_close(other[0], one[0], rtol=1e-5)
    chex.assert_trees_all_equal_structs(other[1].inner_state, one[1])
    chex.assert_trees_all_close(other[1].inner_state, one[1], rtol=1e-4, atol=1e-5)


PARTS = {
    **{f"{name} alone": x for name, x in STEP_SIZES.items() if "gauss" not in name},
    "hager_zhang alone": (scale_by_hager_zhang_linesearch, SEARCH_EXTRAS),
}


@pytest.mark.parametrize("name", PARTS)
def test_hyperparameters_of_a_step_size_may_be_traced(name):
    factory, extras = PARTS[name]
    tx, params = optax.inject_hyperparams(factory)(), small_params()
    carry = params, tx.init(params)
    assert carry[1].hyperparams
    step = make_step(Row(name, factory, {}, extras), tx, small_loss)
    traced = jax.eval_shape(tx.init, params), *jax.eval_shape(step, *carry)
    chex.assert_trees_all_equal_shapes_and_dtypes(traced, (carry[1], *carry))


# Whoever takes a rate gives it to `optax.scale_by_learning_rate`.
RATED = [row.name for row in PRESETS if "learning_rate" in row.kwargs]


@each_row(names=RATED, fast=None)
def test_a_constant_schedule_is_the_number(row):
    scheduled = row.make(learning_rate=optax.constant_schedule(RATE))
    tx, params = row.make(), small_params()
    step, step_scheduled = (make_step(row, t, small_loss) for t in (tx, scheduled))
    one, other = (params, tx.init(params)), (params, scheduled.init(params))
    for _ in range(2):
        one, other = step(*one), step_scheduled(*other)
    # A few roundings of float32.
    chex.assert_trees_all_close(other[0], one[0], rtol=1e-6)


def _parabola():
    target = jnp.array([1.0, -1.0, 1.0])
    start = jnp.array([-1.0, 10.0, 1.0])
    return start, target, lambda x: jnp.sum((x - target) ** 2)


def _rosenbrock():
    def loss(p):
        return (1.0 - p[0]) ** 2 + 100.0 * (p[1] - p[0] ** 2) ** 2

    return jnp.zeros(2), jnp.ones(2), loss


def _matrix():
    target = jnp.array([[3.0, -2.0], [1.0, 4.0]])
    return jnp.zeros((2, 2)), target, lambda x: jnp.sum((x - target) ** 2)


def _mixed():
    target = jnp.array([1.0, -1.0, 2.0]), jnp.array([[1.0, 0.0], [-1.0, 1.0]])

    def loss(x):
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(x, target, strict=True))

    return optax.tree.zeros_like(target), target, loss


# The narrow valley limits the step to 1e-3 (its curvature is 1000); where the
# preconditioner divides the curvature out, the step has no scale but its own.
ROSENBROCK_RATES = {
    "fr": 1e-3,
    "pr+": 1e-3,
    "hz": 3e-4,
    "constant": 1e-3,
    "daniel": 1e-3,
    "per_leaf": 1e-3,
    "smoothed": 1e-3,
    "restarted": 1e-3,
    "restart_memory": 1e-3,
    "rms": 1e-3,
    "factored": 1e-3,
    "orthogonal": 3e-4,
    "kronecker": 1e-3,
    "secant_rate": 0.2,
    "secant_params": 0.2,
    "secant_hvp": 0.2,
    "hutchinson": 0.02,
    "equilibration": 0.2,
    "bartlett": 1e-3,
    "curvature_step": 0.25,
    "subspace_step": 1.0,
    "scaled_cg_step": 1.0,
    "slope_ratio": 1e-3,
    "paper_fr_step": 0.2,
    "paper_pr_online": 0.2,
    "paper_layerwise": 0.5,
}
SEARCHES = [row.name for row in ROWS if row.searches]
NO_OUTPUTS = {
    row.name: "a Gauss-Newton matrix needs a model, which these problems have not"
    for row in ROWS
    if "output_loss_fn" in row.extras
}
# By the loss as the only output, or by signs and norms alone: no step size of these
# rows dies out at an optimum, or they are many rows of one step.
NO_LIMIT = {
    name: reason
    for reason, names in {
        "its step does not die out": (
            *("kronecker defaults", "orthogonal alone", "kronecker of secant"),
            *("orthogonal of kronecker", "large_batch_nlcg", "tuning_free_nlcg"),
            *("tuning_free_nlcg horizon", "virtual_batch of a preset"),
        ),
        "its rate would fit one problem": (
            *("secant_params alone", "layer-wise ratio", "loss_ratio"),
            *("hutchinson alone", "equilibration alone", "bartlett alone"),
        ),
        "decays": ("nlcg",),
    }.items()
    for name in names
}


def _solve(row, tx, start, loss, steps):
    step = make_step(row, tx, loss)

    @jax.jit
    def run(params):
        carry = (params, tx.init(params))
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=steps)[0][0]

    return run(start)


def _check_quadratic(row, problem):
    start, target, loss = problem()
    solution = _solve(row, row.make(), start, loss, 200 if row.searches else 2000)
    # Optax asks for 3e-2.
    chex.assert_trees_all_close(solution, target, atol=1e-4)


@each_row(without=NO_OUTPUTS | NO_LIMIT | OF_SCALARS)
def test_a_quadratic_of_a_mixed_tree_is_solved(row):
    _check_quadratic(row, _mixed)


@each_row(names=("fr", "factored", "orthogonal", "paper_layerwise", "search"))
@pytest.mark.parametrize("problem", [_parabola, _matrix])
def test_quadratics_of_other_shapes_are_solved(row, problem):
    _check_quadratic(row, problem)


# A rate of its own for each row that has one.
@each_row(names=[*ROSENBROCK_RATES, *SEARCHES])
def test_rosenbrock_is_solved(row):
    start, target, loss = _rosenbrock()
    # Optax's own 30 000 steps on Rosenbrock; a search needs far fewer.
    tx, steps = row.make(), 5000
    if not row.searches:
        rate, steps = ROSENBROCK_RATES[row.name], 30_000
        overrides = {"learning_rate": rate}
        if row.name == "secant_rate":
            overrides["preconditioner"] = scale_by_diagonal_secant(rate)
        tx = row.make(**overrides)
    # Optax's tolerance.
    solution = _solve(row, tx, start, loss, steps)
    chex.assert_trees_all_close(solution, target, atol=3e-2, rtol=3e-2)
