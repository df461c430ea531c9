"""Proves that the optimizers drive Flax: `TrainState` and `nnx.Optimizer`."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training import train_state

from tests.contract.running import (
    FAST,
    OF_SCALARS,
    WIDE,
    ModelLoss,
    amplifies,
    compiled_step,
    each_row,
    extra_args,
    make_step,
    small_loss,
    small_params,
)
from tests.contract.table import BY_NAME


def _train_state(tx):
    params = small_params()
    return train_state.TrainState.create(apply_fn=small_loss, params=params, tx=tx)


def _flax_step(row, state):
    """`apply_gradients`, or what it does with the extra arguments that it lacks.

    It forwards none to `tx.update`: its own keywords are fields to replace.
    """
    value, grad = jax.value_and_grad(state.apply_fn)(state.params)
    if not row.extras:
        return state.apply_gradients(grads=grad)
    known = extra_args(row, value, grad, state.apply_fn)
    updates, opt_state = state.tx.update(grad, state.opt_state, state.params, **known)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


@each_row(fast=None, without=OF_SCALARS)
def test_train_state_takes_the_steps_of_optax(row):
    """The same program, from leaves to leaves: three steps of it are those of Optax."""
    tx, step = row.make(), make_step(row, row.make(), small_loss)
    state = _train_state(tx)

    def flax(params, opt_state):
        after = _flax_step(row, state.replace(params=params, opt_state=opt_state))
        return after.params, after.opt_state

    def program(step):
        jaxpr = str(jax.make_jaxpr(step)(state.params, state.opt_state))
        return re.sub(r" at 0x[0-9a-f]+", "", jaxpr)

    if row.name != "zoom":  # which takes another gradient in our step
        assert program(flax) == program(step)


@each_row(names=FAST, fast=("pr+", "secant_hvp"))
def test_a_jitted_train_state_takes_three_steps(row):
    tx, step = compiled_step(row.name)
    state, own = _train_state(tx), (small_params(), tx.init(small_params()))
    flax_step = jax.jit(functools.partial(_flax_step, row))
    for _ in range(3):
        state, own = flax_step(state), step(*own)
    assert state.step == 3
    chex.assert_trees_all_close(state.params, own[0], rtol=1e-6)
    chex.assert_trees_all_close(state.opt_state, own[1], rtol=1e-5, atol=1e-6)


X = jnp.sin(jnp.arange(24.0)).reshape(8, 3)
Y = jnp.cos(jnp.arange(16.0)).reshape(8, 2)


def _model():
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def _check_nnx(row, jitted):
    """Three updates by ``nnx.Optimizer`` are those of Optax alone."""
    model = _model()
    graphdef, start = nnx.split(model, nnx.Param)
    start = jax.tree.map(lambda x: x.astype(float), start)
    nnx.update(model, start)
    optimizer = nnx.Optimizer(model, row.make(), wrt=nnx.Param)

    def outputs_fn(params):  # of the state of parameters, as the optimizer sees it
        return jnp.tanh(nnx.merge(graphdef, params)(X.astype(float)))

    value_fn = ModelLoss(outputs_fn, _output_loss)

    def nnx_step(model, optimizer):
        params = nnx.state(model, nnx.Param)
        value, grads = jax.value_and_grad(value_fn)(params)
        optimizer.update(model, grads, **extra_args(row, value, grads, value_fn))

    def plain_outputs_fn(params):
        return jnp.tanh(X.astype(float) @ params["kernel"] + params["bias"][None])

    tx = row.make()
    params = {"bias": start["bias"][...], "kernel": start["kernel"][...]}
    params = jax.tree.map(jnp.copy, params)
    own = params, tx.init(params)
    plain_step = make_step(row, tx, ModelLoss(plain_outputs_fn, _output_loss))
    if jitted:
        nnx_step, plain_step = nnx.jit(nnx_step), jax.jit(plain_step)
    for _ in range(3):
        nnx_step(model, optimizer)
        own = plain_step(*own)
    trained = {"bias": model.bias[...], "kernel": model.kernel[...]}
    # Another program: roundings, carried through three steps.
    chex.assert_trees_all_close(trained, own[0], rtol=2e-5, atol=2e-6)
    before, after = plain_outputs_fn(params), plain_outputs_fn(trained)
    assert float(_output_loss(after)) < float(_output_loss(before))


def _output_loss(outputs):
    return jnp.mean((outputs - Y.astype(outputs.dtype)) ** 2)


# What `nnx.Optimizer` changes is how a state is stored and rebuilt around an update,
# which is the same with and without jit.
@each_row(names=WIDE)
def test_nnx_takes_the_steps_of_optax(row, request):
    if amplifies(row):
        request.getfixturevalue("x64")
    _check_nnx(row, jitted=False)


@each_row(
    names=(*FAST, "large_batch_nlcg", "tuning_free_nlcg"),
    fast=("secant_hvp", "large_batch_nlcg", "tuning_free_nlcg"),
)
def test_jitted_nnx_takes_the_steps_of_optax(row, request):
    if amplifies(row):
        request.getfixturevalue("x64")
    _check_nnx(row, jitted=True)


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
