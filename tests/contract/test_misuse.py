"""What is said where an argument is misused: each message names it and the remedy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nlcg_optax as n
from nlcg_optax import contrib, paper
from nlcg_optax.direction import rules
from nlcg_optax.wrappers.extra_args import warn_of_near_misses

PARAMS = {"b": jnp.array([0.5, -1.0]), "w": jnp.ones([3, 2])}
GRADS = {"b": jnp.array([1.0, 2.0]), "w": jnp.full([3, 2], -3.0)}


def loss(params):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def outputs_fn(params):
    return jnp.tanh(params["w"]) + params["b"][None]


def square(outputs):
    return jnp.sum(outputs**2)


def raises(error, message):
    return pytest.raises(error, match=re.escape(message))


# --- arguments of factories ----------------------------------------------------------

FACTORIES = {
    "nlcg of a rule": (
        lambda: n.nlcg("fr"),
        TypeError,
        "learning_rate='fr' is a str; allowed are a number and a schedule, a function "
        "of the step count; the rule is the second argument: nlcg(0.1, 'fr'), or "
        "nlcg(rule='fr') with a line search",
    ),
    "nlcg of a transformation": (
        lambda: n.nlcg(optax.scale_by_rms()),
        TypeError,
        "learning_rate=GradientTransformation",
    ),
    "large_batch_nlcg of a rule": (
        lambda: n.large_batch_nlcg("pr+"),
        TypeError,
        "learning_rate='pr+' is a str",
    ),
    "large_batch_nlcg without a rate": (
        lambda: n.large_batch_nlcg(None),
        TypeError,
        "only nlcg() has a line search instead",
    ),
    "tuning_free_nlcg of a schedule": (
        lambda: n.tuning_free_nlcg(optax.constant_schedule(1.0)),
        ValueError,
        "must be an integer of at least 1",
    ),
    "paper_nlcg of a rule": (
        lambda: n.paper_nlcg("pr"),
        TypeError,
        "the rule comes second: paper_nlcg(0.1, 'pr')",
    ),
    "diagonal secant of a secant": (
        lambda: n.scale_by_diagonal_secant("hvp"),
        TypeError,
        "the source of y is a keyword: secant='hvp'",
    ),
    "a rate beside a line search": (
        lambda: n.nlcg(0.1, linesearch=n.scale_by_hager_zhang_linesearch()),
        ValueError,
        "learning_rate=0.1 cannot be combined with a linesearch, which finds the step "
        "size; leave one of them out",
    ),
    "only_extra_args of a string": (
        lambda: n.only_extra_args(optax.sgd(0.1), "value"),
        TypeError,
        "names='value' is one string",
    ),
    "virtual_batch in the wrong order": (
        lambda: n.virtual_batch(8, optax.sgd(0.1)),
        TypeError,
        "tx=8 is a int; allowed is an optax.GradientTransformation",
    ),
    "split_parameters in the wrong order": (
        lambda: n.split_parameters("model", optax.sgd(0.1)),
        TypeError,
        "tx='model' is a str",
    ),
    "diagnostics of an optimizer": (
        lambda: n.diagnostics(n.nlcg(0.1)),
        TypeError,
        "opt_state is an optimizer; allowed is its state",
    ),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_names_the_argument_and_the_remedy(name):
    call, error, message = FACTORIES[name]
    with raises(error, message):
        call()


@pytest.mark.parametrize(
    "rate",
    [0.1, 1, np.float32(0.1), jnp.float32(0.1), optax.linear_schedule(0.1, 0.0, 9)],
)
def test_numbers_and_schedules_are_rates(rate):
    tx = n.nlcg(rate)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    number = float(rate(0) if callable(rate) else rate)
    for name, grad in GRADS.items():
        np.testing.assert_allclose(updates[name], -number * grad, rtol=1e-6)


def categorical(key, outputs):
    return jax.random.normal(key, outputs.shape)


INJECTED = {
    "rule": (n.scale_by_nlcg, {"rule": lambda p: p.g_z / p.g_prev_z_prev}),
    "rule of ours": (n.nlcg, {"learning_rate": 0.1, "rule": rules.hager_zhang}),
    "weight_decay_mask": (
        n.nlcg,
        {
            "learning_rate": 0.1,
            "weight_decay": 0.1,
            "weight_decay_mask": lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
        },
    ),
    "weight_dimension_numbers": (
        n.scale_by_kronecker,
        {"weight_dimension_numbers": lambda p: jax.tree.map(lambda x: None, p)},
    ),
    "mask": (
        n.damp_by_beta,
        {
            "direction": n.scale_by_nlcg(),
            "mask": lambda p: jax.tree.map(lambda x: x.ndim < 2, p),
        },
    ),
    "mask of the paper's": (
        paper.scale_by_layerwise_ratio,
        {"mask": lambda p: jax.tree.map(lambda x: x.ndim < 2, p)},
    ),
    "likelihood": (n.scale_by_gauss_newton_bartlett, {"likelihood": categorical}),
}


@pytest.mark.parametrize("name", INJECTED)
def test_a_function_taken_for_a_schedule_is_named(name):
    factory, kwargs = INJECTED[name]
    argument = name.split()[0]
    with raises(
        TypeError,
        f"{argument} is a function that optax.inject_hyperparams took for a schedule "
        f"and called with the step count; give optax.inject_hyperparams "
        f"static_args=('{argument}',)",
    ):
        optax.inject_hyperparams(factory)(**kwargs).init(PARAMS)


STATIC = {
    "block_size": (n.scale_by_kronecker, 2),
    "one_sided_ratio": (n.scale_by_kronecker, 2.0),
    "graft": (n.scale_by_kronecker, False),
    "steps": (n.scale_by_orthogonalization, 3),
    "restore_norm": (n.scale_by_orthogonalization, True),
    "memory": (n.scale_by_limited_memory, 2),
}


@pytest.mark.parametrize("name", STATIC)
def test_a_number_on_which_the_program_depends_is_not_injected(name):
    factory, value = STATIC[name]
    injected = optax.inject_hyperparams(factory)(**{name: value})
    given = jax.eval_shape(injected.init, PARAMS)
    assert name not in given.hyperparams
    expected = jax.eval_shape(factory(**{name: value}).init, PARAMS)
    assert given.inner_state == expected
    # In a factory of the user's nothing keeps Optax from making an array of it.
    users = lambda number: factory(**{name: number})
    injected = optax.inject_hyperparams(users)(np.asarray(value))
    with raises(TypeError, f"static_args=('{name}',)"):
        jax.eval_shape(injected.init, PARAMS)


def test_with_static_args_a_callable_rule_is_injected():
    rule = INJECTED["rule"][1]["rule"]
    tx = optax.inject_hyperparams(n.nlcg, static_args=("rule",))(0.1, rule)
    plain = n.nlcg(0.1, rule)
    state, plain_state = tx.init(PARAMS), plain.init(PARAMS)
    for _ in range(2):
        updates, state = tx.update(GRADS, state, PARAMS)
        expected, plain_state = plain.update(GRADS, plain_state, PARAMS)
    # Injected numbers are rounded to float32, 6e-8, before they are multiplied.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected
    )


def test_a_dtype_taken_for_a_schedule_is_named():
    tx = optax.inject_hyperparams(n.scale_by_nlcg)(state_dtype=jnp.bfloat16)
    with raises(ValueError, "give its name: state_dtype='bfloat16'"):
        tx.init(PARAMS)


# --- the order of the arguments of update --------------------------------------------

TRANSFORMATIONS = {
    "scale_by_nlcg": n.scale_by_nlcg,
    "nlcg": lambda: n.nlcg(0.1),
    "nlcg, search": n.nlcg,
    "nlcg, decay": lambda: n.nlcg(0.1, weight_decay=0.1),
    "large_batch_nlcg": lambda: n.large_batch_nlcg(0.1),
    "tuning_free_nlcg": n.tuning_free_nlcg,
    "paper_nlcg": lambda: n.paper_nlcg(0.1),
    "paper_nlcg, layer-wise": lambda: n.paper_nlcg(0.1, layerwise_eta=0.1),
    "scale_by_kronecker": n.scale_by_kronecker,
    "scale_by_orthogonalization": n.scale_by_orthogonalization,
    "scale_by_hutchinson": n.scale_by_hutchinson,
    "scale_by_equilibration": n.scale_by_equilibration,
    "scale_by_gauss_newton_bartlett": n.scale_by_gauss_newton_bartlett,
    "scale_by_diagonal_secant": n.scale_by_diagonal_secant,
    "scale_by_limited_memory": n.scale_by_limited_memory,
    "scale_by_slope_ratio": lambda: n.scale_by_slope_ratio(optax.identity()),
    "scale_by_curvature_step": n.scale_by_curvature_step,
    "scale_by_subspace_step": n.scale_by_subspace_step,
    "scale_by_hager_zhang_linesearch": n.scale_by_hager_zhang_linesearch,
    "virtual_batch": lambda: n.virtual_batch(n.nlcg(0.1), 2),
    "split_parameters": lambda: n.split_parameters(n.nlcg(0.1), "model"),
    "only_extra_args": lambda: n.only_extra_args(n.nlcg(0.1), ()),
    "scale_by_loss_ratio": paper.scale_by_loss_ratio,
    "scale_by_scaled_cg_step": contrib.scale_by_scaled_cg_step,
    "scale_by_daniel": contrib.scale_by_daniel,
    "scale_by_nlcg_across_halves": contrib.scale_by_nlcg_across_halves,
    "scale_by_nlcg_with_restart_memory": contrib.scale_by_nlcg_with_restart_memory,
}
EXTRAS = {
    "value": jnp.float32(1.0),
    "grad": GRADS,
    "value_fn": loss,
    "outputs_fn": outputs_fn,
    "output_loss_fn": square,
    "half_grads": (GRADS, GRADS),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_order_of_gradients_and_state(name):
    tx = TRANSFORMATIONS[name]()
    state = tx.init(PARAMS)
    wrong = r"update got a \w+ as `state`.*call update\(grads, state, params\)"
    with pytest.raises(TypeError, match=wrong):
        tx.update(state, GRADS, PARAMS, **EXTRAS)
    with pytest.raises(TypeError, match=wrong):
        tx.update(GRADS, PARAMS, state, **EXTRAS)


OPTIONS = {
    # Two transformations with states of the same class, and what the first one lacks.
    "rule": (n.scale_by_nlcg("fr"), n.scale_by_nlcg("hz"), "the grad_prev that these"),
    "rule and preconditioner": (
        n.scale_by_nlcg("hz"),
        n.scale_by_nlcg("hz", preconditioner=optax.scale(1.0)),
        "the precond_grad_prev that these options need",
    ),
    "scope": (
        n.scale_by_nlcg(),
        n.scale_by_nlcg(scope="per_leaf"),
        "scalars of shape (), but scope='per_leaf' needs (2,)",
    ),
    "the other scope": (
        n.scale_by_nlcg(scope="per_leaf"),
        n.scale_by_nlcg(),
        "scalars of shape (2,), but scope='global' needs ()",
    ),
    "halves": (
        contrib.scale_by_nlcg_across_halves("fr"),
        contrib.scale_by_nlcg_across_halves("pr+"),
        "scale_by_nlcg_across_halves: update got a `state` without the grad_prev",
    ),
    "restart memory": (
        contrib.scale_by_nlcg_with_restart_memory("fr", memory=2),
        contrib.scale_by_nlcg_with_restart_memory("pr+", memory=2),
        "the grad_prev that these options need",
    ),
    "secant": (
        n.scale_by_diagonal_secant(secant="hvp"),
        n.scale_by_diagonal_secant(0.1),
        "the grad_prev that these options need",
    ),
    "learning rate": (
        n.scale_by_diagonal_secant(0.1),
        n.scale_by_diagonal_secant(),
        "the params_prev that these options need",
    ),
    "undo": (
        paper.scale_by_loss_ratio(undo=False),
        paper.scale_by_loss_ratio(undo=True),
        "the previous_updates that these options need",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_state_made_with_other_options_is_reported(name):
    other, tx, message = OPTIONS[name]
    with raises(ValueError, message):
        tx.update(GRADS, other.init(PARAMS), PARAMS, **EXTRAS)


# --- parameters ----------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_integers_among_the_parameters(name):
    tx = TRANSFORMATIONS[name]()
    with raises(TypeError, "leaf ['w'] has dtype int32; allowed are real and complex"):
        tx.init({**PARAMS, "w": jnp.ones([3, 2], jnp.int32)})


# --- extra arguments of update -------------------------------------------------------


SHAPES = {
    "secant": (n.scale_by_diagonal_secant, "params", {}),
    "pairs": (n.scale_by_limited_memory, "params", {}),
    "line search": (
        n.scale_by_hager_zhang_linesearch,
        "params",
        {"value": 1.0, "grad": GRADS, "value_fn": loss},
    ),
    "vectors": (n.scale_by_orthogonalization, "updates", {}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_would_broadcast_is_named(name):
    make, argument, more = SHAPES[name]
    tx = make()
    given = {"updates": GRADS, "params": PARAMS}
    given[argument] = given[argument] | {"b": jnp.ones(1)}
    with raises(ValueError, f"{argument}['b'] has shape (1,), but the state was "):
        tx.update(given["updates"], tx.init(PARAMS), given["params"], **more)


def test_a_missing_argument_and_its_misspelling_are_named():
    search = n.nlcg()
    given = {"value": jnp.float32(1.0), "grad": GRADS, "value_fn": loss}
    for name in given:
        others = {key: x for key, x in given.items() if key != name}
        with raises(ValueError, f"update needs `{name}` ("):
            search.update(GRADS, search.init(PARAMS), PARAMS, **others)
    with raises(ValueError, "needs `value_fn` (the objective), but got None (is `loss"):
        search.update(
            GRADS,
            search.init(PARAMS),
            PARAMS,
            value=given["value"],
            grad=GRADS,
            loss_fn=loss,
        )
    step = n.scale_by_curvature_step("gauss_newton")
    with raises(ValueError, "got None (is `output_fn` misspelled?)"):
        step.update(
            GRADS,
            step.init(PARAMS),
            PARAMS,
            output_fn=outputs_fn,
            output_loss_fn=square,
        )
    control = paper.scale_by_loss_ratio()
    with raises(ValueError, "got None (is `loss` misspelled?)"):
        control.update(GRADS, control.init(PARAMS), PARAMS, loss=1.0)
    bartlett = n.scale_by_gauss_newton_bartlett()
    with raises(ValueError, "needs `outputs_fn` (labels are drawn), but got None (is"):
        bartlett.update(GRADS, bartlett.init(PARAMS), PARAMS, apply_fn=outputs_fn)


@pytest.mark.parametrize("name", ["value", "grad", "value_fn"])
def test_what_a_line_search_of_optax_misses_is_named(name):
    tx = n.nlcg(linesearch=optax.scale_by_backtracking_linesearch(3))
    given = {"value": jnp.float32(1.0), "grad": GRADS, "value_fn": loss}
    del given[name]
    with raises(ValueError, f"for_linesearch: update needs `{name}`"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, **given)


def test_what_a_function_misses_is_named():
    step = n.scale_by_curvature_step()
    with raises(TypeError, "value_fn has the parameter `images`, but update got no"):
        step.update(
            GRADS,
            step.init(PARAMS),
            PARAMS,
            value_fn=lambda params, images: loss(params),
            image=1.0,
        )


def test_extra_arguments_that_are_nearly_ours_are_reported():
    tx = n.nlcg(0.1)
    state = tx.init(PARAMS)
    for given, name in {"valuefn": "value_fn", "refesh": "refresh"}.items():
        with pytest.warns(UserWarning, match=f"`{given}`, which nothing.*`{name}`"):
            tx.update(GRADS, state, PARAMS, **{given: True})
    # Others may be for another transformation, which is Optax's contract.
    tx.update(GRADS, state, PARAMS, epoch=3, loss=1.0)
    # Given beside the name itself, or with a function that has it as a parameter.
    warn_of_near_misses({"values": 1.0, "value": 1.0})
    warn_of_near_misses({"values": 1.0, "value_fn": lambda params, values: values})


def test_strictly_only_extra_args_that_are_named():
    tx = n.only_extra_args(n.nlcg(0.1), ("value",), strict=True)
    state = tx.init(PARAMS)
    tx.update(GRADS, state, PARAMS, value=1.0)
    with raises(TypeError, "update got the extra argument `epoch`; allowed are ['val"):
        tx.update(GRADS, state, PARAMS, value=1.0, epoch=3)
