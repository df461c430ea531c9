"""Proves that the optimizers drive Flax: `TrainState` and `nnx.Optimizer`."""

import itertools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training import train_state

from tests.contract import table
from tests.contract.cases import (
    BY_NAME,
    compiled_step,
    make_step,
    small_loss,
    small_params,
)


@pytest.mark.parametrize("name", ["pr+", "secant_params"])
def test_train_state_applies_gradients(name):
    case = BY_NAME[name]
    tx = case.make()
    params = small_params()
    state = train_state.TrainState.create(apply_fn=small_loss, params=params, tx=tx)

    @jax.jit
    def flax_step(state):
        return state.apply_gradients(grads=jax.grad(state.apply_fn)(state.params))

    _, optax_step = compiled_step(case.name)
    own = (params, tx.init(params))
    for _ in range(3):
        state, own = flax_step(state), optax_step(*own)
    assert state.step == 3
    chex.assert_trees_all_close(state.params, own[0], rtol=1e-6)
    chex.assert_trees_all_close(state.opt_state, own[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["paper_fr_step", "secant_hvp", "search"])
def test_train_state_with_extra_arguments_goes_by_replace(name):
    # `apply_gradients` forwards no extra arguments to `tx.update`: its own keywords
    # are fields to replace. So the update is spelt out, in two lines.
    case = BY_NAME[name]
    tx = case.make()
    params = small_params()
    state = train_state.TrainState.create(apply_fn=small_loss, params=params, tx=tx)

    @jax.jit
    def flax_step(state):
        value, grad = jax.value_and_grad(state.apply_fn)(state.params)
        extra_args = case.extra_args(value, grad, state.apply_fn)
        updates, opt_state = state.tx.update(
            grad, state.opt_state, state.params, **extra_args
        )
        return state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        )

    _, optax_step = compiled_step(case.name)
    own = (params, tx.init(params))
    for _ in range(3):
        state, own = flax_step(state), optax_step(*own)
    assert state.step == 3
    chex.assert_trees_all_close(state.params, own[0], rtol=1e-6)


X = jnp.sin(jnp.arange(24.0)).reshape(8, 3)
Y = jnp.cos(jnp.arange(16.0)).reshape(8, 2)


def _model():
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def _model_loss(model):
    return jnp.mean((jnp.tanh(model(X)) - Y) ** 2)


@pytest.mark.parametrize("name", ["pr+", "secant_hvp", "search_secant"])
def test_nnx_optimizer_forwards_extra_arguments(name):
    case = BY_NAME[name]
    model = _model()
    graphdef, start = nnx.split(model, nnx.Param)
    optimizer = nnx.Optimizer(model, case.make(), wrt=nnx.Param)

    def value_fn(params):  # of the state of parameters, as the optimizer sees it
        return _model_loss(nnx.merge(graphdef, params))

    @nnx.jit
    def nnx_step(model, optimizer):
        value, grad = nnx.value_and_grad(_model_loss)(model)
        optimizer.update(model, grad, **case.extra_args(value, grad, value_fn))

    # The same problem without Flax's objects.
    def plain_loss(params):
        out = jnp.tanh(X @ params["kernel"] + params["bias"][None])
        return jnp.mean((out - Y) ** 2)

    params = {"bias": start["bias"][...], "kernel": start["kernel"][...]}
    params = jax.tree.map(jnp.copy, params)
    tx = case.make()
    plain_step = jax.jit(make_step(case, tx, plain_loss))
    own = (params, tx.init(params))
    for _ in range(3):
        nnx_step(model, optimizer)
        own = plain_step(*own)
    trained = {"bias": model.bias[...], "kernel": model.kernel[...]}
    assert float(_model_loss(model)) < float(plain_loss(params))
    # Another program: roundings, carried through three steps.
    chex.assert_trees_all_close(trained, own[0], rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@table.each_row
def test_nnx_keeps_the_state_of_every_part(row, standard_promotion):
    _check_nnx(row, jitted=True)


# The presets, and the states that are more than trees of arrays like the parameters.
@pytest.mark.parametrize("row", ["kronecker", "large_batch_nlcg", "tuning_free_nlcg"])
@pytest.mark.parametrize("jitted", [False, True])
def test_nnx_keeps_the_state_of_presets(row, jitted, standard_promotion):
    _check_nnx(row, jitted)


def _check_nnx(row, jitted):
    """Three updates by ``nnx.Optimizer`` are those of Optax alone."""
    model = _model()
    graphdef, start = nnx.split(model, nnx.Param)
    optimizer = nnx.Optimizer(model, table.make(row), wrt=nnx.Param)

    def outputs_fn(params):
        return jnp.tanh(nnx.merge(graphdef, params)(X))

    def value_fn(params):
        return table.output_loss_fn(outputs_fn(params))

    def nnx_step(model, optimizer):
        params = nnx.state(model, nnx.Param)
        value, grads = jax.value_and_grad(value_fn)(params)
        optimizer.update(
            model,
            grads,
            value=value,
            grad=grads,
            value_fn=value_fn,
            outputs_fn=outputs_fn,
            output_loss_fn=table.output_loss_fn,
            half_grads=(grads, grads),
        )

    def plain_outputs_fn(params):
        return jnp.tanh(X @ params["kernel"] + params["bias"][None])

    tx = table.make(row)
    params = {"bias": start["bias"][...], "kernel": start["kernel"][...]}
    params = jax.tree.map(jnp.copy, params)
    own = params, tx.init(params)

    def plain_step(params, state):
        return table.step(tx, params, state, plain_outputs_fn)

    if jitted:
        nnx_step, plain_step = nnx.jit(nnx_step), jax.jit(plain_step)
    for _ in range(3):
        nnx_step(model, optimizer)
        own = plain_step(*own)
    trained = {"bias": model.bias[...], "kernel": model.kernel[...]}
    # Another program: roundings, carried through three steps.
    chex.assert_trees_all_close(trained, own[0], rtol=2e-5, atol=2e-6)


def test_nnx_value_fn_with_batch_statistics():
    """Batch statistics that ``value_fn`` changes inside do not leak out of it."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(2, momentum=0.5, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.linear(x))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, BY_NAME["search_secant"].make(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        graphdef, _, rest = nnx.split(model, nnx.Param, ...)
        rest = jax.tree.map(jnp.copy, rest)  # the search may call it many times

        def value_fn(params):
            return jnp.mean((nnx.merge(graphdef, params, rest, copy=True)(X) - Y) ** 2)

        def loss_fn(model):
            return jnp.mean((model(X) - Y) ** 2)

        value, grad = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grad, value=value, grad=grad, value_fn=value_fn)
        return value

    first = model.linear(X).mean(axis=0)
    losses = [step(model, optimizer)]
    # Exactly one running average of the batch mean, started at zero, has been taken.
    chex.assert_trees_all_close(model.norm.mean[...], 0.5 * first, rtol=1e-5, atol=1e-7)
    losses += [step(model, optimizer) for _ in range(3)]
    assert all(b < a for a, b in itertools.pairwise(losses))
