"""Proves the properties of Optax's own common tests for every optimizer here."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from nlcg_optax import diagnostics, scale_by_diagonal_secant
from tests.contract.cases import (
    BY_NAME,
    CASES,
    RATE,
    STOCHASTIC,
    compiled_step,
    count_compilations,
    ids,
    make_step,
    small_loss,
    small_params,
)

each_case = pytest.mark.parametrize("case", CASES, ids=ids)


def _types(tree):
    return jax.tree.map(jax.typeof, tree)


@each_case
def test_unknown_extra_arguments_are_accepted_and_change_nothing(case):
    tx = case.make()
    params = small_params()

    def update(grad, state, params, **unknown):
        extra_args = case.extra_args(small_loss(params), grad, small_loss)
        return tx.update(grad, state, params, **extra_args, **unknown)

    def program(**unknown):
        jaxpr = jax.make_jaxpr(functools.partial(update, **unknown))
        text = str(jaxpr(params, tx.init(params), params))
        return re.sub(r" at 0x[0-9a-f]+", "", text)

    # Not only the same numbers: the same program.
    assert program(an_unknown_extra_argument=1) == program()


@each_case
def test_one_compilation_serves_all_steps(case):
    tx = case.make()
    step = jax.jit(make_step(case, tx, small_loss))
    params = small_params()
    state = tx.init(params)
    with count_compilations() as first:
        params, state = step(params, state)
    assert any("step" in message for message in first)
    with count_compilations() as later:
        for _ in range(3):
            params, state = step(params, state)
    assert later == []


@each_case
def test_state_keeps_structure_shape_dtype_and_type(case):
    # jax.typeof holds the shape, the dtype, the weak type and the sharding.
    tx, step = compiled_step(case.name)
    params = small_params()
    state = tx.init(params)
    new_params, new_state = step(params, state)
    chex.assert_trees_all_equal_structs(state, new_state)
    assert _types(state) == _types(new_state)
    assert _types(jax.jit(tx.init)(params)) == _types(state)
    assert _types(new_params) == _types(params)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


@each_case
def test_the_state_is_accepted_as_a_branch_of_a_conditional(case):
    # Optax's stability test: `lax.cond` refuses any difference of type.
    tx, _ = compiled_step(case.name)
    params = small_params()
    step = make_step(case, tx, small_loss)

    def either(take, params, state):
        return jax.lax.cond(take, step, lambda *old: old, params, state)

    state = tx.init(params)
    out = jax.eval_shape(either, True, params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, (params, state))


@pytest.mark.parametrize("case", STOCHASTIC, ids=ids)
def test_map_params_finds_the_parameters_in_the_state(case):
    # Optax's own line searches cannot be asked (their `init` looks at the dtype of a
    # leaf, and `map_params` gives them a tree without leaves).
    tx, step = compiled_step(case.name)
    params = small_params()
    _, state = step(params, tx.init(params))
    same = optax.tree.map_params(tx, lambda leaf: leaf, state)
    chex.assert_trees_all_equal(same, state)
    # The scalars are no parameters: only the leaves of parameter trees are touched.
    zeros = optax.tree.map_params(tx, jnp.zeros_like, state)
    assert optax.tree.norm(optax.tree.get(state, "direction")) > 0
    assert optax.tree.norm(optax.tree.get(zeros, "direction")) == 0
    chex.assert_trees_all_equal(diagnostics(zeros), diagnostics(state))
    assert diagnostics(zeros)["grad_norm"] > 0


@each_case
def test_zero_gradients_move_nothing(case):
    tx = case.make()
    params = small_params()
    zeros = optax.tree.zeros_like(params)

    def flat(params):
        return 0.0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) + 1.0

    extra_args = case.extra_args(jnp.float32(1.0), zeros, flat)
    update = jax.jit(lambda s, p: tx.update(zeros, s, p, **extra_args))
    state = tx.init(params)
    for _ in range(3):
        updates, state = update(state, params)
        chex.assert_trees_all_equal(updates, zeros)
    # The infinities that are meant to be there are bounds, which no state holds.
    chex.assert_tree_all_finite(state)


@pytest.mark.parametrize(
    "case",
    [
        BY_NAME[name]
        for name in (
            "hz",
            "per_leaf",
            "factored",
            "secant_hvp",
            "paper_layerwise",
            "search",
        )
    ],
    ids=ids,
)
def test_none_leaves_are_left_alone(case):
    """A None in the parameters changes no number of the other leaves."""
    tx, step = compiled_step(case.name)
    params = small_params()

    def loss(tree):
        return small_loss({"b": tree["b"], "w": tree["w"]})

    step_with_none = jax.jit(make_step(case, tx, loss))
    with_none = {**params, "a": None}
    one, other = (params, tx.init(params)), (with_none, tx.init(with_none))
    for _ in range(2):
        one, other = step(*one), step_with_none(*other)
    assert other[0].pop("a") is None
    chex.assert_trees_all_equal(other[0], one[0])


def test_a_none_gradient_of_a_present_parameter_is_named():
    tx, _ = compiled_step("pr+")
    params = small_params()
    with pytest.raises(ValueError, match="updates has the tree structure"):
        tx.update({**params, "b": None}, tx.init(params), params)


@each_case
def test_hyperparameters_can_be_injected(case):
    # rtol: injected numbers enter as float32 arrays, plain ones as constants that XLA
    # folds; after three steps the two differ by some roundings (1e-7 each).
    plain = case.make()
    injected = optax.inject_hyperparams(case.factory)(**case.kwargs)
    params = small_params()
    step = compiled_step(case.name)[1]
    step_injected = jax.jit(make_step(case, injected, small_loss))
    one, other = (params, plain.init(params)), (params, injected.init(params))
    for _ in range(3):
        one, other = step(*one), step_injected(*other)
    chex.assert_trees_all_close(other[0], one[0], rtol=1e-5)
    chex.assert_trees_all_equal_structs(other[1].inner_state, one[1])
    chex.assert_trees_all_close(other[1].inner_state, one[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if not c.searches], ids=ids)
def test_a_constant_schedule_is_the_number(case):
    scheduled = case.make(learning_rate=optax.constant_schedule(RATE))
    params = small_params()
    tx, step = compiled_step(case.name)
    step_scheduled = jax.jit(make_step(case, scheduled, small_loss))
    one, other = (params, tx.init(params)), (params, scheduled.init(params))
    for _ in range(3):
        one, other = step(*one), step_scheduled(*other)
    # A few roundings of float32 apart, for XLA folds the constant elsewhere.
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
    "hz": 3e-4,
    "orthogonal": 3e-4,
    "secant_rate": 0.2,
    "secant_params": 0.2,
    "secant_hvp": 0.2,
    "hutchinson": 0.02,
    "equilibration": 0.2,
    "curvature_step": 0.25,
    "subspace_step": 1.0,
    "scaled_cg_step": 1.0,
    "paper_fr_step": 0.2,
    "paper_pr_online": 0.2,
    "paper_layerwise": 0.1,
}
# Optax's own 30 000 steps on Rosenbrock; a search needs far fewer.
PROBLEMS = {"parabola": _parabola, "matrix": _matrix, "mixed": _mixed}
QUADRATIC_CASES = [
    *((case, "mixed") for case in CASES),
    *(
        (BY_NAME[name], problem)
        for name in ("fr", "factored", "orthogonal", "paper_layerwise", "search")
        for problem in ("parabola", "matrix")
    ),
]


def _solve(case, tx, start, loss, steps):
    step = make_step(case, tx, loss)

    @jax.jit
    def run(params):
        carry = (params, tx.init(params))
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=steps)[0][0]

    return run(start)


@pytest.mark.parametrize(
    ("case", "problem"),
    QUADRATIC_CASES,
    ids=[f"{c.name}-{p}" for c, p in QUADRATIC_CASES],
)
def test_quadratics_are_solved(case, problem):
    start, target, loss = PROBLEMS[problem]()
    solution = _solve(case, case.make(), start, loss, 200 if case.searches else 2000)
    # Optax asks for 3e-2.
    chex.assert_trees_all_close(solution, target, atol=1e-4)


@each_case
def test_rosenbrock_is_solved(case):
    start, target, loss = _rosenbrock()
    if case.searches:
        tx, steps = case.make(), 5000
    else:
        rate, steps = ROSENBROCK_RATES.get(case.name, 1e-3), 30_000
        overrides = {"learning_rate": rate}
        if case.name == "secant_rate":
            overrides["preconditioner"] = scale_by_diagonal_secant(rate)
        tx = case.make(**overrides)
    # Optax's tolerance and number of steps.
    solution = _solve(case, tx, start, loss, steps)
    chex.assert_trees_all_close(solution, target, atol=3e-2, rtol=3e-2)
