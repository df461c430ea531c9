"""Proves that each preset descends with its defaults, bare and in Optax's wrappers."""

import jax
import jax.numpy as jnp
import optax
import pytest

import nlcg_optax as n
from tests.contract.test_common import _matrix, _mixed, _parabola, _rosenbrock

# Optax's four problems, and the learning rate of presets that need one.
PROBLEMS = {
    "parabola": (_parabola, 0.05),
    "rosenbrock": (_rosenbrock, 1e-3),
    "matrix": (_matrix, 0.05),
    "mixed": (_mixed, 0.05),
}
PRESETS = {
    "nlcg": n.nlcg,
    "nlcg, line search": lambda _: n.nlcg(),
    "large_batch_nlcg": n.large_batch_nlcg,
    "tuning_free_nlcg": lambda _: n.tuning_free_nlcg(),
    "paper_nlcg": n.paper_nlcg,
}
STEPS = 60


def _partition(tx, label):
    """All parameters in one group of two; the other is empty."""
    return optax.partition(
        {"ours": tx, "theirs": optax.sgd(0.01)},
        lambda params: jax.tree.map(lambda _: label, params),
        mask_compatible_extra_args=True,
    )


WRAPPERS = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "virtual_batch": lambda tx: n.virtual_batch(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked": lambda tx: optax.masked(tx, True, mask_compatible_extra_args=True),
    "partition, all ours": lambda tx: _partition(tx, "ours"),
    "partition, none ours": lambda tx: _partition(tx, "theirs"),
    "reduce_on_plateau": lambda tx: optax.chain(
        tx, optax.contrib.reduce_on_plateau(patience=5)
    ),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.05),
    "mechanize": optax.contrib.mechanize,
}


def _losses(tx, start, loss, steps=STEPS):
    """The loss before each step and after the last."""

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        # In a group of `partition` a part of the parameters may be masked.
        value_fn = n.fill_masked(loss, params)
        extra_args = {"value": value, "grad": grad, "value_fn": value_fn}
        updates, state = tx.update(grad, state, params, **extra_args)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def run(params):
        carry = (params, tx.init(params))
        (params, _), values = jax.lax.scan(step, carry, length=steps)
        return jnp.append(values, loss(params))

    return run(start)


def _problems():
    for preset in PRESETS:
        for problem in PROBLEMS:
            marks = [] if problem in ("rosenbrock", "mixed") else [pytest.mark.slow]
            yield pytest.param(preset, problem, marks=marks)


@pytest.mark.parametrize(("preset", "problem"), list(_problems()))
def test_a_preset_descends(preset, problem):
    make, rate = PROBLEMS[problem]
    start, _, loss = make()
    losses = _losses(PRESETS[preset](rate), start, loss)
    assert jnp.all(jnp.isfinite(losses))
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=[] if name == "nlcg" else [pytest.mark.slow])
        for name in PRESETS
    ],
)
def test_a_preset_descends_in_a_wrapper(preset, wrapper):
    start, _, loss = _mixed()
    tx = WRAPPERS[wrapper](PRESETS[preset](0.05))
    losses = _losses(tx, start, loss)
    assert jnp.all(jnp.isfinite(losses))
    assert losses[-1] < losses[0]


# --- wrappers that pass no extra arguments on ----------------------------------------

WITHOUT_EXTRAS = ("nlcg", "large_batch_nlcg")


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("preset", WITHOUT_EXTRAS)
def test_a_preset_descends_under_sam(preset):
    """A loop, not a scan: `sam` adds up states, which makes numbers of booleans."""
    start, _, loss = _mixed()
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(1e-3))
    tx = optax.contrib.sam(PRESETS[preset](0.05), adversary, sync_period=2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return params, state, loss(params)

    params, state, losses = start, tx.init(start), []
    for _ in range(STEPS):  # every other one is the adversary's
        params, state, value = step(params, state)
        losses.append(value)
    assert jnp.all(jnp.isfinite(jnp.stack(losses)))
    assert losses[-1] < loss(start)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("preset", WITHOUT_EXTRAS)
def test_a_preset_descends_with_lookahead(preset):
    start, _, loss = _mixed()
    tx = optax.lookahead(PRESETS[preset](0.05), sync_period=5, slow_step_size=0.5)

    def step(carry, _):
        params, state = carry
        grad = jax.grad(loss)(params.fast)
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), loss(params.fast)

    @jax.jit
    def run(params):
        both = optax.LookaheadParams.init_synced(params)
        return jax.lax.scan(step, (both, tx.init(both)), length=STEPS)

    (end, _), losses = run(start)
    assert jnp.all(jnp.isfinite(losses))
    assert loss(end.slow) < loss(start)
