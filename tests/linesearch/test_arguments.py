"""Arguments of the Hager-Zhang transformation: what they do, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import scale_by_hager_zhang_linesearch


def parabola(x):
    return jnp.sum((x - 1.0) ** 2)


def bowl(x):
    return 1 - (x - 1) + 0.8 * (x - 1) ** 2


def searched(tx, fun, state=None):
    """The state after a search from one along plus one."""
    x = jnp.ones([])
    value, grad = jax.value_and_grad(fun)(x)
    state = tx.init(x) if state is None else state
    return tx.update(x, state, x, value=value, grad=grad, value_fn=fun)[1]


# The first step is min(|x| / |d|, 2 |f| / |f'|) = 1, where f = .8: it lies below
# 1 - .1 and above 1 - .4. The minimizer is .625, where f = .6875 < 1 - .4 * .625.
@pytest.mark.parametrize(("decrease", "step"), [(0.1, 1.0), (0.4, 0.625)])
def test_a_step_has_to_decrease_the_value_sufficiently(decrease, step):
    tx = scale_by_hager_zhang_linesearch(
        sufficient_decrease=decrease, quadratic_step=False
    )
    found = searched(tx, bowl).diagnostics
    np.testing.assert_allclose(found.step_size, step, rtol=1e-6)
    assert found.num_values == 0


def test_without_an_upper_end_a_search_takes_max_evaluations():
    tx = scale_by_hager_zhang_linesearch(max_evaluations=7)
    found = searched(tx, lambda x: -x).diagnostics
    # The value at the trial step is one of the seven.
    assert (found.num_values, found.num_gradients) == (1, 6)
    assert found.num_failed_searches == 1


@pytest.mark.parametrize(("initial_step", "step"), [("one", 1.0), ("previous", 0.625)])
def test_a_later_search_begins_with_the_step_named(initial_step, step):
    first = scale_by_hager_zhang_linesearch(
        sufficient_decrease=0.4, quadratic_step=False
    )
    # A decrease of .1, the default, accepts both: the first one measured is taken.
    tx = scale_by_hager_zhang_linesearch(
        initial_step=initial_step, quadratic_step=False
    )
    found = searched(tx, bowl, searched(first, bowl)).diagnostics
    np.testing.assert_allclose(found.step_size, step, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sufficient_decrease": 0.6}, "sufficient_decrease=0.6"),
        ({"max_slope_ratio": 1.0}, "max_slope_ratio=1.0"),
        ({"max_slope_ratio": 0.01}, "max_slope_ratio=0.01"),
        ({"initial_step": "two"}, "initial_step='two'"),
        ({"max_evaluations": 0}, "max_evaluations=0"),
        ({"quadratic_step": "maybe"}, "quadratic_step='maybe'"),
        ({"quadratic_step": "adaptive"}, "initial_step='one'; got 'previous'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        scale_by_hager_zhang_linesearch(**kwargs)


@pytest.mark.parametrize(
    "kwargs", [{"sufficient_decrease": "0.1"}, {"max_slope_ratio": None}]
)
def test_what_is_no_number_is_named(kwargs):
    ((name, value),) = kwargs.items()
    with pytest.raises(TypeError, match=f"{name}={value!r} is a .*; allowed is a real"):
        scale_by_hager_zhang_linesearch(**kwargs)


def test_numbers_are_injectable():
    injected = optax.inject_hyperparams(scale_by_hager_zhang_linesearch)(
        sufficient_decrease=0.2, max_slope_ratio=0.5
    )
    fixed = scale_by_hager_zhang_linesearch(
        sufficient_decrease=0.2, max_slope_ratio=0.5
    )
    fun, x = lambda x: jnp.sum(jnp.cosh(x)), jnp.array([1.0, 2.0])
    value, grad = jax.value_and_grad(fun)(x)
    found = []
    for tx in (injected, fixed):
        update = jax.jit(functools.partial(tx.update, value_fn=fun))
        found.append(update(-grad, tx.init(x), x, value=value, grad=grad)[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("missing", ["value", "grad", "value_fn"])
def test_missing_extra_arguments_are_named(missing):
    tx, x = scale_by_hager_zhang_linesearch(), jnp.ones(2)
    extras = {"value": 2.0, "grad": 2 * x, "value_fn": lambda x: jnp.sum(x**2)}
    del extras[missing]
    with pytest.raises(ValueError, match=f"`{missing}`"):
        tx.update(-x, tx.init(x), x, **extras)


def test_a_search_needs_a_point_after_the_quadratic_step():
    for quadratic_step in (True, "adaptive"):
        with pytest.raises(ValueError, match="max_evaluations=1 .* quadratic step"):
            scale_by_hager_zhang_linesearch(
                max_evaluations=1, quadratic_step=quadratic_step, initial_step="one"
            )
    tx = scale_by_hager_zhang_linesearch(max_evaluations=1, quadratic_step=False)
    x, grad = jnp.zeros(2), jnp.full(2, -2.0)
    updates, _ = tx.update(
        -grad, tx.init(x), x, value=parabola(x), grad=grad, value_fn=parabola
    )
    assert parabola(updates) < parabola(x)
