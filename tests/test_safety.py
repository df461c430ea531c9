"""The tuning-free preset neither diverges nor falls behind plain gradient descent.

On Optax's contract problems, on regressions whose features differ by a million, and on
networks with whole and with sampled batches: against the best of many rates of SGD on
the same problem, and with the largest averaged loss on the way bounded.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlcg_optax import scale_by_curvature_step, scale_by_slope_ratio, tuning_free_nlcg
from nlcg_optax import scale_by_nlcg as direction
from tests import small_transformer

LOSS_DECAY = 0.8  # of the averaged loss
RATES = 10.0 ** np.arange(-9.0, 1.1, 0.5)
# Below this part of the first loss float32 rounds, and nothing is compared.
NOTHING_LEFT = 1e-6

RNG = np.random.default_rng(0)
SCALES = np.logspace(-3, 3, 8)
FEATURES = jnp.asarray(RNG.normal(size=(100, 8)) * SCALES, jnp.float32)
TARGETS = FEATURES @ jnp.asarray(RNG.normal(size=8) / SCALES, jnp.float32)
LABELS = (TARGETS > 0).astype(jnp.float32)
INPUTS = jnp.asarray(RNG.normal(size=(256, 8)), jnp.float32)
CLASSES = jnp.asarray(np.argmax(np.tanh(INPUTS @ RNG.normal(size=(8, 4))), axis=1))


def parabola(x):
    return jnp.sum((x - jnp.array([1.0, -1.0, 1.0])) ** 2)


def matrix(x):
    return jnp.sum((x - jnp.array([[3.0, -2.0], [1.0, 4.0]])) ** 2)


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def mixed(params):
    return jnp.sum((params["a"] - 1) ** 2) + jnp.sum((params["b"] + 2) ** 2)


def linear(x):
    return jnp.mean((FEATURES @ x - TARGETS) ** 2)


def logistic(x):
    z = FEATURES @ x
    return jnp.mean(jnp.logaddexp(0.0, z) - LABELS * z)


def network(activation, params, inputs, classes):
    hidden = activation(inputs @ params["w"] + params["b"][None])
    logits = hidden @ params["v"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, classes))


def drawn(loss_of, data, batch, seed=0):
    """A loss of a batch that the number of the step draws, and of all examples."""
    examples = len(data[0])

    def loss(params, step):
        if batch == examples:
            return loss_of(params, *data)
        key = jax.random.fold_in(jax.random.key(seed), step)
        rows = jax.random.choice(key, examples, (batch,), replace=False)
        return loss_of(params, *(array[rows] for array in data))

    return loss, lambda params: loss_of(params, *data)


def sampled(activation, batch, seed=0):
    loss_of = functools.partial(network, activation)
    return drawn(loss_of, (INPUTS, CLASSES), batch, seed)


def characters(batch):
    return drawn(small_transformer.loss, (small_transformer.TEXT,), batch)


def deterministic(loss):
    return lambda params, step: loss(params), loss


NETWORK = {
    "w": jnp.asarray(RNG.normal(size=(8, 16)) / 2, jnp.float32),
    "b": jnp.zeros(16),
    "v": jnp.asarray(RNG.normal(size=(16, 4)) / 4, jnp.float32),
}
PROBLEMS = {
    "parabola": (deterministic(parabola), jnp.array([-1.0, 10.0, 1.0])),
    "matrix": (deterministic(matrix), jnp.zeros([2, 2])),
    "mixed": (deterministic(mixed), {"a": jnp.zeros(2), "b": jnp.zeros([2, 3])}),
    "Rosenbrock": (deterministic(rosenbrock), jnp.zeros(2)),
    "linear": (deterministic(linear), jnp.zeros(8)),
    "logistic": (deterministic(logistic), jnp.zeros(8)),
    "tanh": (sampled(jnp.tanh, 256), NETWORK),
    "tanh, sampled": (sampled(jnp.tanh, 32), NETWORK),
    "relu": (sampled(jax.nn.relu, 256), NETWORK),
    "relu, sampled": (sampled(jax.nn.relu, 32), NETWORK),
    "transformer": (characters(64), small_transformer.PARAMS),
    "transformer, an eighth": (characters(8), small_transformer.PARAMS),
    "transformer, a sixty-fourth": (characters(1), small_transformer.PARAMS),
}
# A sixty-fourth of the examples, where luck decides: several seeds for the batches.
TINY_BATCH = 4
SEEDS = jnp.arange(8)


def run(tx, problem, steps):
    """The last loss over all examples, and the largest averaged one over the first.

    The number of steps may be traced, so that one program serves all of them.
    """
    (loss, whole), start = PROBLEMS[problem]
    params, largest = followed(tx, loss, start, whole(start), steps)
    return whole(params), largest / whole(start)


def followed(tx, loss, start, first, steps):
    """The last parameters and the largest averaged loss, ``first`` at the least."""
    tx = optax.with_extra_args_support(tx)

    def step(t, carry):
        params, state, average, largest = carry
        value, grads = jax.value_and_grad(loss)(params, t)
        updates, state = tx.update(grads, state, params, value=value)
        average = jnp.where(
            t == 0, value, LOSS_DECAY * average + (1 - LOSS_DECAY) * value
        )
        params = optax.apply_updates(params, updates)
        return params, state, average, jnp.maximum(largest, average)

    carry = (start, tx.init(start), first, first)
    params, _, _, largest = jax.lax.fori_loop(0, steps, step, carry)
    return params, largest


@functools.cache
def program_of_sgd(problem):
    def last(steps, rate):
        return run(optax.sgd(rate), problem, steps)[0]

    return jax.jit(jax.vmap(last, (None, 0)))


@functools.cache
def best_of_sgd(problem, steps):
    # Those of a transformer are not so far apart.
    rates = RATES[-7:] if problem.startswith("transformer") else RATES
    found = program_of_sgd(problem)(steps, jnp.asarray(rates, jnp.float32))
    losses = np.asarray(found)
    return float(np.min(losses[np.isfinite(losses)]))


@functools.cache
def program_of_preset(problem, horizon):
    return jax.jit(functools.partial(run, tuning_free_nlcg(horizon), problem))


def check(problem, steps, horizon):
    last, largest = program_of_preset(problem, horizon)(steps)
    (_, whole), start = PROBLEMS[problem]
    assert last <= max(2 * best_of_sgd(problem, steps), NOTHING_LEFT * whole(start))
    assert largest < 2


FAST = [("Rosenbrock", 300, 300), ("linear", 300, None), ("relu, sampled", 60, 60)]
# How far sampled networks come depends on roundings: where XLA optimizes little, two
# of these end at 2.2 and 2.4 times the loss of the best rate, instead of .01 and .5.
SLOW = [
    pytest.param(
        problem,
        steps,
        horizon,
        marks=[pytest.mark.optimized] if "sampled" in problem else [],
    )
    for problem in PROBLEMS
    for steps in (60, 300, 1000, 3000)
    for horizon in (steps, None)
    if (problem, steps, horizon) not in FAST
]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("problem", "steps", "horizon"), FAST)
def test_no_worse_than_twice_the_best_rate(problem, steps, horizon):
    check(problem, steps, horizon)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("problem", "steps", "horizon"), SLOW)
def test_no_worse_than_twice_the_best_rate_everywhere(problem, steps, horizon):
    check(problem, steps, horizon)


def tiny(tx, activation, steps, seed):
    loss, whole = sampled(activation, TINY_BATCH, seed)
    first = whole(NETWORK)
    params, largest = followed(tx, loss, NETWORK, first, steps)
    return whole(params) / first, largest / first


@functools.cache
def tiny_program_of_sgd(activation):
    def of_rates(steps, seed):
        rates = jnp.asarray(RATES, jnp.float32)
        last = jax.vmap(lambda r: tiny(optax.sgd(r), activation, steps, seed)[0])(rates)
        return jnp.where(jnp.isfinite(last), last, jnp.inf)

    return jax.jit(jax.vmap(of_rates, (None, 0)))


@functools.cache
def tiny_program_of_preset(activation, is_planned):
    def one(steps, seed):
        tx = tuning_free_nlcg(steps if is_planned else None)
        return tiny(tx, activation, steps, seed)

    return jax.jit(jax.vmap(one, (None, 0)))


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("steps", [60, 300, 1000, 3000])
@pytest.mark.parametrize("is_planned", [True, False])
@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu], ids=["tanh", "relu"])
def test_with_a_sixty_fourth_of_the_examples(activation, is_planned, steps):
    """The mean ends at no more than twice that of the best rate; a draw may not.

    Some runs in a hundred end beyond twice the best rate for their draw, most of them
    after 3,000 steps, where that and most runs fit every example. Of more seeds tells
    `experiments.studies.tiny_batches`.
    """
    of_sgd = tiny_program_of_sgd(activation)(steps, SEEDS)
    last, largest = tiny_program_of_preset(activation, is_planned)(steps, SEEDS)
    assert np.mean(last) < 2 * np.min(np.mean(of_sgd, axis=0))
    best = np.min(of_sgd, axis=1)
    behind = np.sort(last / np.maximum(best, NOTHING_LEFT))
    assert np.median(behind) < 1.6
    assert behind[-2 if is_planned else -3] <= 2
    assert behind[-1] < (30 if steps == 3000 else 6)
    assert np.max(largest) < 2


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("horizon", [30_000, None])
def test_thirty_thousand_steps_on_rosenbrock(horizon):
    last, largest = program_of_preset("Rosenbrock", horizon)(30_000)
    assert last < 1e-3
    assert largest < 2


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_the_curvature_step_is_safe_inside_the_slope_ratio_step():
    # By itself it diverges here: its loss rises beyond 1e9.
    def with_loss(inner):
        def update(updates, state, params=None, **extra_args):
            given = {**extra_args, "value_fn": rosenbrock}
            return inner.update(updates, state, params, **given)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    chain = optax.chain(direction("pr+"), scale_by_curvature_step())
    step = scale_by_slope_ratio(with_loss(chain), initial_step_size=1.0)
    tx = optax.chain(step, optax.scale(-1.0))
    last, largest = jax.jit(lambda: run(tx, "Rosenbrock", 30_000))()
    assert last < 1e-3
    assert largest < 2
