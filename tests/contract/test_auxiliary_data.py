"""Functions that return auxiliary data: a pair is named, or taken with ``has_aux``."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nlcg_optax as n
from nlcg_optax.linesearch import ScaleByHagerZhangLinesearchState
from tests.contract.test_misuse import GRADS, PARAMS, loss, raises


def loss_and_aux(params):
    return loss(params), params


def outputs_fn(params):
    return jnp.tanh(params["w"]) + params["b"][None]


def outputs_and_aux(params):
    return outputs_fn(params), {"mean": params["b"]}


def square(outputs):
    return jnp.sum(outputs**2)


VALUE_PAIR = (
    "value_fn must return a real scalar of a floating-point dtype, but returned a "
    "tuple of 2; if these are the value and auxiliary data, pass has_aux=True"
)
OUTPUT_PAIR = (
    "output_loss_fn failed for the pair that outputs_fn returned; if it is the outputs "
    "and auxiliary data, pass has_aux=True"
)
CURVATURES = {
    "hessian_vector_product": lambda: n.hessian_vector_product(
        loss_and_aux, PARAMS, GRADS
    ),
    "hessian_along": lambda: n.hessian_along(loss_and_aux, PARAMS, [GRADS]),
    "gauss_newton_vector_product": lambda: n.gauss_newton_vector_product(
        outputs_and_aux, square, PARAMS, GRADS
    ),
    "gauss_newton_along": lambda: n.gauss_newton_along(
        outputs_and_aux, square, PARAMS, [GRADS]
    ),
}
READERS = {
    "scale_by_hutchinson": n.scale_by_hutchinson,
    "scale_by_equilibration": n.scale_by_equilibration,
    "scale_by_curvature_step": n.scale_by_curvature_step,
    "scale_by_subspace_step": n.scale_by_subspace_step,
    "scale_by_hager_zhang_linesearch": n.scale_by_hager_zhang_linesearch,
    "nlcg": n.nlcg,
    "search of Optax": lambda: n.nlcg(
        linesearch=optax.scale_by_backtracking_linesearch(3)
    ),
    "secant": lambda: n.nlcg(
        0.1, preconditioner=n.scale_by_diagonal_secant(secant="hvp")
    ),
}
OUTPUT_READERS = {
    "scale_by_hutchinson": lambda: n.scale_by_hutchinson("gauss_newton"),
    "scale_by_curvature_step": lambda: n.scale_by_curvature_step("gauss_newton"),
    "scale_by_subspace_step": lambda: n.scale_by_subspace_step("gauss_newton"),
}


@pytest.mark.parametrize("name", CURVATURES)
def test_a_pair_is_named_by_a_curvature_function(name):
    message = VALUE_PAIR if name.startswith("hessian") else OUTPUT_PAIR
    with raises(TypeError, message):
        CURVATURES[name]()


def updated(tx, **extra_args):
    tx = optax.with_extra_args_support(tx)
    state = tx.init(PARAMS)
    extra_args = {"value": loss(PARAMS), "grad": jax.grad(loss)(PARAMS), **extra_args}
    # Down for a search alone; to all others the sign does not matter here.
    grads = extra_args["grad"]
    if isinstance(state, ScaleByHagerZhangLinesearchState):
        grads = jax.tree.map(jnp.negative, grads)
    for _ in range(2):  # a secant pair needs two
        updates, state = tx.update(grads, state, PARAMS, **extra_args)
    return updates


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", READERS)
def test_a_pair_is_named_by_what_reads_value_fn(name):
    with raises(TypeError, VALUE_PAIR):
        updated(READERS[name](), value_fn=loss_and_aux)


@pytest.mark.parametrize("name", OUTPUT_READERS)
def test_a_pair_is_named_by_what_reads_outputs_fn(name):
    with raises(TypeError, OUTPUT_PAIR):
        updated(
            OUTPUT_READERS[name](), outputs_fn=outputs_and_aux, output_loss_fn=square
        )


def test_a_pair_is_named_by_what_draws_labels():
    with raises(TypeError, "outputs and auxiliary data, pass has_aux=True"):
        updated(n.scale_by_gauss_newton_bartlett(), outputs_fn=outputs_and_aux)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", READERS)
def test_with_has_aux_a_pair_counts_as_its_value(name):
    updates = updated(READERS[name](), value_fn=loss_and_aux, has_aux=True)
    expected = updated(READERS[name](), value_fn=loss)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


@pytest.mark.parametrize("name", [*OUTPUT_READERS, "scale_by_gauss_newton_bartlett"])
def test_with_has_aux_a_pair_counts_as_its_outputs(name):
    make = {
        **OUTPUT_READERS,
        "scale_by_gauss_newton_bartlett": n.scale_by_gauss_newton_bartlett,
    }[name]
    updates = updated(
        make(), outputs_fn=outputs_and_aux, output_loss_fn=square, has_aux=True
    )
    expected = updated(make(), outputs_fn=outputs_fn, output_loss_fn=square)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_curvature_functions_with_auxiliary_data():
    same = jax.tree.map(
        np.testing.assert_array_equal,
        (
            n.hessian_vector_product(loss_and_aux, PARAMS, GRADS, has_aux=True),
            n.hessian_along(loss_and_aux, PARAMS, [GRADS], has_aux=True),
            n.gauss_newton_vector_product(
                outputs_and_aux, square, PARAMS, GRADS, has_aux=True
            ),
            n.gauss_newton_along(
                outputs_and_aux, square, PARAMS, [GRADS], has_aux=True
            ),
        ),
        (
            n.hessian_vector_product(loss, PARAMS, GRADS),
            n.hessian_along(loss, PARAMS, [GRADS]),
            n.gauss_newton_vector_product(outputs_fn, square, PARAMS, GRADS),
            n.gauss_newton_along(outputs_fn, square, PARAMS, [GRADS]),
        ),
    )
    assert len(jax.tree.leaves(same, is_leaf=lambda x: x is None)) == 10


def test_has_aux_without_a_pair_and_of_a_wrong_kind():
    with raises(TypeError, "with has_aux=True value_fn must return a pair"):
        n.hessian_vector_product(loss, PARAMS, GRADS, has_aux=True)
    step = n.scale_by_curvature_step()
    with raises(TypeError, "has_aux=1 must be True or False"):
        step.update(GRADS, step.init(PARAMS), PARAMS, value_fn=loss_and_aux, has_aux=1)
