"""Proves that the table of the contract has every part, and every part its extras."""

import contextlib
import inspect
import sys

import chex
import jax
import optax
import pytest

import nlcg_optax as n
from nlcg_optax import contrib, paper
from nlcg_optax.direction.rules import RULES
from tests.contract.running import (
    FAST,
    KEY,
    OF_SCALARS,
    each_row,
    make_step,
    small_loss,
    small_params,
    types,
)
from tests.contract.table import (
    BY_NAME,
    NO_ROWS,
    ONLY_NESTED,
    PRECONDITIONERS,
    RATE,
    ROWS,
    STEP_SIZES,
    Row,
)


def _transformations():
    """The public functions that return a transformation, by name."""
    for module in (n, contrib, paper):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isfunction(found):
                kind = inspect.signature(found).return_annotation
                if "GradientTransformation" in str(kind):
                    yield name, inspect.unwrap(found).__code__


@contextlib.contextmanager
def _calls():
    """What every function called inside the context returned last, by its code."""
    called, before = {}, sys.getprofile()

    def profile(frame, event, returned):
        if event == "return":
            called[frame.f_code] = returned

    sys.setprofile(profile)
    try:
        yield called
    finally:
        sys.setprofile(before)


def test_building_the_table_calls_every_public_transformation():
    public = dict(_transformations())
    assert {"nlcg", "scale_by_daniel", "paper_nlcg", "virtual_batch"} <= set(public)
    with _calls() as called:
        for row in ROWS:
            row.make()
        # Preconditioners and step sizes inside of arguments are built with the table.
        for make, _ in STEP_SIZES.values():
            make()
        for factory, kwargs, _ in PRECONDITIONERS.values():
            factory(**kwargs)
    missing = {name for name, code in public.items() if code not in called}
    assert missing == set(NO_ROWS)
    # In a chain Optax drops extra arguments for one that takes none.
    for name in public.keys() - missing:
        made = called[public[name]]
        assert isinstance(made, optax.GradientTransformationExtraArgs), name


def test_every_rule_and_both_forms_of_every_preconditioner_are_rows():
    assert len(BY_NAME) == len(ROWS)
    assert set(RULES) <= {row.kwargs.get("rule") for row in ROWS}
    for name in PRECONDITIONERS:
        assert name in BY_NAME
        assert (f"{name} alone" in BY_NAME) != (name in ONLY_NESTED)
    assert set(STEP_SIZES) <= set(BY_NAME)
    assert set(FAST) <= set(KEY) <= set(BY_NAME)
    assert set(OF_SCALARS) <= set(BY_NAME)


@each_row(fast=None)
def test_the_extra_arguments_of_a_row_are_enough_and_none_too_many(row):
    tx, params = row.make(), small_params()
    state = tx.init(params)
    jax.eval_shape(make_step(row, tx, small_loss), params, state)
    for name in row.extras:
        fewer = row._replace(extras=tuple(x for x in row.extras if x != name))
        with pytest.raises((ValueError, TypeError), match=name):
            jax.eval_shape(make_step(fewer, tx, small_loss), params, state)


# --- each preconditioner with each step size -----------------------------------------

PAIRS = [
    (preconditioner, step_size)
    for preconditioner in PRECONDITIONERS
    for step_size in (*STEP_SIZES, "slope_ratio", "line search")
]


def _pair(preconditioner, step_size):
    factory, kwargs, extras = PRECONDITIONERS[preconditioner]
    direction = {"preconditioner": factory(**kwargs)}
    if step_size in STEP_SIZES:
        make, more = STEP_SIZES[step_size]
        arguments = {"learning_rate": RATE, "step_control": make(), **direction}
        factory = n.nlcg
    else:
        row = BY_NAME["search" if step_size == "line search" else step_size]
        more, factory, arguments = row.extras, row.factory, {**row.kwargs, **direction}
    extras = tuple(dict.fromkeys((*extras, *more)))
    return Row(f"{preconditioner} with {step_size}", factory, arguments, extras)


@pytest.mark.parametrize(("preconditioner", "step_size"), PAIRS)
def test_a_preconditioner_and_a_step_size_keep_the_types(preconditioner, step_size):
    row = _pair(preconditioner, step_size)
    tx, params = row.make(), small_params()
    state = tx.init(params)
    after = jax.eval_shape(make_step(row, tx, small_loss), params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


# The loss ratio starts from a learning rate that may be too long for some P.
FINDING = [pair for pair in PAIRS if pair[1] != "loss_ratio"]


@pytest.mark.slow
@pytest.mark.parametrize(("preconditioner", "step_size"), FINDING)
def test_a_preconditioner_and_a_step_size_descend(preconditioner, step_size):
    row = _pair(preconditioner, step_size)
    tx, params = row.make(), small_params()
    step = jax.jit(make_step(row, tx, small_loss))
    carry = params, tx.init(params)
    start = types(carry)
    for _ in range(4):
        carry = step(*carry)
    assert types(carry) == start
    assert float(small_loss(carry[0])) < float(small_loss(params))
