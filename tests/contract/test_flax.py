"""Proves that the optimizers drive Flax: `TrainState` and `nnx.Optimizer`."""

import itertools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training import train_state

import nlcg_optax
from tests.contract.cases import (
    BY_NAME,
    KEY_CASES,
    compiled_step,
    ids,
    make_step,
    small_loss,
    small_params,
)

WITHOUT_EXTRAS = [case for case in KEY_CASES if not case.extras]


@pytest.mark.parametrize("case", WITHOUT_EXTRAS, ids=ids)
def test_train_state_applies_gradients(case):
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


@pytest.mark.parametrize(
    "name",
    ["pr+", "rms", "secant_params", "secant_hvp", "paper_fr_step", "search_secant"],
)
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


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", ["large_batch_nlcg", "tuning_free_nlcg"])
def test_nnx_optimizer_takes_the_presets_of_matrices(name, jitted):
    """Their state has one array, or a masked node, in the place of each parameter."""
    make = {
        "large_batch_nlcg": lambda: nlcg_optax.large_batch_nlcg(0.05),
        "tuning_free_nlcg": lambda: nlcg_optax.tuning_free_nlcg(curvature="hessian"),
    }[name]
    model = _model()
    graphdef, start = nnx.split(model, nnx.Param)
    optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)

    def value_fn(params):
        return _model_loss(nnx.merge(graphdef, params))

    def nnx_step(model, optimizer):
        grad = nnx.grad(_model_loss)(model)
        optimizer.update(model, grad, value_fn=value_fn)

    tx = make()
    params = jax.tree.map(jnp.copy, nnx.to_pure_dict(start))
    step = nnx.jit(nnx_step) if jitted else nnx_step

    def plain_loss(params):
        out = jnp.tanh(X @ params["kernel"] + params["bias"][None])
        return jnp.mean((out - Y) ** 2)

    @jax.jit
    def plain_step(params, state):
        grad = jax.grad(plain_loss)(params)
        updates, state = tx.update(grad, state, params, value_fn=plain_loss)
        return optax.apply_updates(params, updates), state

    own = (params, tx.init(params))
    for _ in range(3):
        step(model, optimizer)
        own = plain_step(*own)
    trained = {"bias": model.bias[...], "kernel": model.kernel[...]}
    moved = jax.tree.map(lambda new, old: jnp.max(jnp.abs(new - old)), trained, params)
    assert min(jax.tree.leaves(moved)) > 1e-3
    # Another program: roundings, carried through three steps and inverse roots.
    chex.assert_trees_all_close(trained, own[0], rtol=1e-4, atol=1e-5)


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
