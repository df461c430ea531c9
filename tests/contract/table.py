"""Every public transformation, wrapper, preset and rule: one row each.

`cases` holds the optimizers of which numbers are asserted; here are all parts, for the
properties that each must have.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import nlcg_optax as n
from nlcg_optax import contrib, paper

RATE = 0.01
# One for each kind, for tests of which `make test` runs a few and `make test-slow` all.
FAST = {
    "pr+",
    "kronecker",
    "secant of products",
    "limited memory",
    "paper_nlcg, online",
    "nlcg, line search",
    "virtual batch",
}
# How the names of rows begin whose numbers are compared in float64: inverse roots and
# polar factors enlarge roundings where a matrix has almost no gradient, and the first
# steps of a search or of a tuning-free step do so, too.
AMPLIFYING = ("kronecker", "large_batch_nlcg", "tuning_free_nlcg", "for_linesearch")
DATA = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
PARAMS = {"b": jnp.array([0.1, -0.2]), "w": jnp.ones([3, 2]) / 3}


def outputs_fn(params):
    return jnp.tanh(DATA @ params["w"] + params["b"][None])


def output_loss_fn(outputs):
    return jnp.sum((outputs - 0.5) ** 2)


def unit_noise(key, outputs):
    return jax.random.normal(key, outputs.shape, outputs.dtype)


def with_rate(direction, **kwargs):
    return optax.chain(direction(**kwargs), optax.scale_by_learning_rate(RATE))


def stepped(step):
    return n.nlcg(RATE, step_control=step)


def searched(direction, search):
    return optax.chain(direction, optax.scale(-1.0), search)


PRECONDITIONERS: dict[str, Callable[[], Any]] = {
    "kronecker": lambda: n.scale_by_kronecker(refresh_period=3),
    "orthogonalization": n.scale_by_orthogonalization,
    "hutchinson": lambda: n.scale_by_hutchinson(refresh_period=3),
    "equilibration": lambda: n.scale_by_equilibration(refresh_period=3),
    "bartlett": lambda: n.scale_by_gauss_newton_bartlett(unit_noise, refresh_period=3),
    "secant": lambda: n.scale_by_diagonal_secant(RATE),
    "secant of parameters": n.scale_by_diagonal_secant,
    "secant of products": lambda: n.scale_by_diagonal_secant(
        secant="hvp", refresh_period=3
    ),
    "limited memory": lambda: n.scale_by_limited_memory(3),
    "rms": optax.scale_by_rms,
}
DIRECTIONS = {
    **{
        rule: (lambda rule=rule: with_rate(n.scale_by_nlcg, rule=rule))
        for rule in ("fr", "pr+", "hs", "hz", "dk")
    },
    "powell, period": lambda: with_rate(
        n.scale_by_nlcg, restart="powell", restart_period=4
    ),
    "per leaf, bfloat16": lambda: with_rate(
        n.scale_by_nlcg, scope="per_leaf", state_dtype="bfloat16"
    ),
    "daniel": lambda: with_rate(contrib.scale_by_daniel),
    "restart memory": lambda: with_rate(
        contrib.scale_by_nlcg_with_restart_memory, memory=3
    ),
    "halves": lambda: with_rate(contrib.scale_by_nlcg_across_halves),
}
OTHERS = {
    "nlcg": lambda: n.nlcg(RATE, weight_decay=1e-3),
    "nlcg, line search": n.nlcg,
    "large_batch_nlcg": lambda: n.large_batch_nlcg(RATE),
    "tuning_free_nlcg": n.tuning_free_nlcg,
    "tuning_free_nlcg, horizon": lambda: n.tuning_free_nlcg(30),
    "paper_nlcg": lambda: n.paper_nlcg(RATE, layerwise_eta=0.1),
    "paper_nlcg, online": lambda: n.paper_nlcg(RATE, "pr", step_control="online"),
    "loss ratio": lambda: stepped(paper.scale_by_loss_ratio("step")),
    "layer-wise ratio": lambda: optax.chain(
        paper.scale_by_layerwise_ratio(), n.nlcg(RATE)
    ),
    "curvature step": lambda: stepped(
        n.scale_by_curvature_step("gauss_newton", refresh_period=3)
    ),
    "curvature step, hessian": lambda: stepped(n.scale_by_curvature_step("hessian")),
    "slope ratio": lambda: optax.chain(
        n.scale_by_slope_ratio(n.scale_by_nlcg("fr"), 30), optax.scale(-1.0)
    ),
    "damped": lambda: optax.chain(
        n.damp_by_beta(n.scale_by_nlcg("pr+", beta_max=0.9, beta_smoothing=0.9)),
        optax.scale_by_learning_rate(RATE),
    ),
    "subspace step": lambda: stepped(n.scale_by_subspace_step("gauss_newton")),
    "scaled cg step": lambda: stepped(contrib.scale_by_scaled_cg_step()),
    "Hager-Zhang": lambda: searched(
        n.scale_by_nlcg("hz"), n.scale_by_hager_zhang_linesearch()
    ),
    "Hager-Zhang of L-BFGS": lambda: searched(
        n.scale_by_limited_memory(3),
        n.scale_by_hager_zhang_linesearch(
            initial_step="one", quadratic_step="adaptive"
        ),
    ),
    "virtual batch": lambda: n.virtual_batch(n.nlcg(RATE), 2),
    "only_extra_args": lambda: n.only_extra_args(n.nlcg(RATE), ("value",)),
    "for_linesearch": lambda: n.for_linesearch(
        searched(n.scale_by_nlcg("fr"), n.scale_by_hager_zhang_linesearch())
    ),
}
ROWS = {
    **{
        name: (lambda make=make: n.nlcg(RATE, preconditioner=make()))
        for name, make in PRECONDITIONERS.items()
    },
    **DIRECTIONS,
    **OTHERS,
}


def make(name):
    """The transformation of a row; its ``update`` takes all that `extra_args` gives."""
    return optax.with_extra_args_support(ROWS[name]())


def step(tx, params, state, outputs_fn=outputs_fn):
    """One step of training with every extra argument that a row may need."""

    def value_fn(params):
        return output_loss_fn(outputs_fn(params))

    value, grads = jax.value_and_grad(value_fn)(params)
    extra_args = {
        "value": value,
        "grad": grads,
        "value_fn": value_fn,
        "outputs_fn": outputs_fn,
        "output_loss_fn": output_loss_fn,
        "half_grads": (grads, grads),
    }
    updates, state = tx.update(grads, state, params, **extra_args)
    return optax.apply_updates(params, updates), state


each_row = pytest.mark.parametrize(
    "row",
    [
        pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
        for name in ROWS
    ],
)
