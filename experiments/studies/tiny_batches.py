"""``python -m experiments.studies.tiny_batches``: batches of 4 of 256 examples.

Two dense networks, tanh and ReLU, with 60 to 3,000 steps. With such small batches luck
decides, so every figure is over many draws of the batches. A run is judged by the loss
of all examples after its last step, and every method has the one learning rate whose
mean over the draws is least. The means are compared with that of plain SGD. Single runs
are compared with plain SGD on the same batches at its best rate, chosen afterwards for
each draw. How often plain SGD at its one rate exceeds twice that loss shows how much is
luck.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import tyro

import nlcg_optax
from experiments import optimizers
from experiments.errors import ending_with_a_message
from experiments.report.tables import Column, Table

MODULE = "experiments.studies.tiny_batches"
EXAMPLES, BATCH = 256, 4
FEATURES, HIDDEN, CLASSES = 8, 16, 4
LENGTHS = (60, 300, 1000, 3000)
SGD_RATES = tuple(float(rate) for rate in 10.0 ** np.arange(-3.0, 1.1, 0.5))
PRESET_RATES = tuple(float(rate) for rate in 10.0 ** np.arange(-2.5, 0.1, 0.5))
ACTIVATIONS = {"tanh": jnp.tanh, "ReLU": jax.nn.relu}
AVERAGED = 6  # the average of the weights spans a sixth of the steps
# Part of the first loss below which float32 rounds and nothing is compared.
LEAST = 1e-6

Build = Callable[[jax.Array, jax.Array], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class TinyBatchesArguments:
    """Compares the presets with the best rate of plain SGD at batches of 4 of 256.

    Attributes:
      seeds: number of draws of the batches.
      first_seed: the first of their seeds.
      lengths: numbers of steps.
    """

    seeds: int = 32
    first_seed: int = 0
    lengths: tuple[int, ...] = LENGTHS


class Outcome(NamedTuple):
    """Losses of a run, each as a part of the first loss.

    Attributes:
      last: the loss of all examples.
      averaged: the same at the averaged weights.
      largest: the largest running average of batch losses, with decay 0.8.
    """

    last: jax.Array
    averaged: jax.Array
    largest: jax.Array


class Method(NamedTuple):
    """A row of the table.

    Attributes:
      name: name in the table.
      build: an optimizer from the number of steps and a learning rate.
      rates: learning rates; the one with the least mean over the draws counts.
      is_averaged: whether the averaged weights count.
    """

    name: str
    build: Build
    rates: tuple[float, ...] = (1.0,)
    is_averaged: bool = False


def _linear(steps: jax.Array, rate: jax.Array) -> optax.Schedule:
    return lambda count: rate * jnp.maximum(1 - count / steps, 0)


SGD = Method("SGD, best rate", lambda _steps, rate: optax.sgd(rate), SGD_RATES)
METHODS = (
    SGD,
    Method(
        "`tuning_free_nlcg(num_steps)`",
        lambda steps, _rate: nlcg_optax.tuning_free_nlcg(steps),
    ),
    Method("`tuning_free_nlcg()`", lambda _steps, _rate: nlcg_optax.tuning_free_nlcg()),
    Method(
        "the same, averaged weights",
        lambda _steps, _rate: nlcg_optax.tuning_free_nlcg(),
        is_averaged=True,
    ),
    Method(
        "`large_batch_nlcg`, best rate",
        lambda steps, rate: nlcg_optax.large_batch_nlcg(_linear(steps, rate)),
        PRESET_RATES,
    ),
    Method(
        "the same with restarts",
        lambda steps, rate: (
            optimizers.build(
                "ordered_nlcg", _linear(steps, rate), {"restart": "ascent"}
            ).transformation
        ),
        PRESET_RATES,
    ),
)


def _problem() -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Inputs, the classes that a random matrix gives them, and the first weights."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    inputs = normal(EXAMPLES, FEATURES)
    classes = np.argmax(np.tanh(inputs @ normal(FEATURES, CLASSES)), axis=1)
    start = {
        "w": normal(FEATURES, HIDDEN) / 2,
        "b": np.zeros(HIDDEN, np.float32),
        "v": normal(HIDDEN, CLASSES) / 4,
    }
    return jnp.asarray(inputs), jnp.asarray(classes), jax.tree.map(jnp.asarray, start)


def run(
    method: Method,
    activation: Callable[[jax.Array], jax.Array],
    steps: jax.Array,
    seed: jax.Array,
    rate: jax.Array,
) -> Outcome:
    """One run; the number of steps may be traced, so that one program serves all."""
    inputs, classes, start = _problem()
    tx = optax.with_extra_args_support(method.build(steps, rate))

    def loss(params: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        hidden = activation(inputs[rows] @ params["w"] + params["b"])
        losses = optax.softmax_cross_entropy_with_integer_labels(
            hidden @ params["v"], classes[rows]
        )
        return jnp.mean(losses)

    def step(count: jax.Array, carry: Any) -> Any:
        params, average, state, level, largest = carry
        key = jax.random.fold_in(jax.random.key(seed), count)
        rows = jax.random.choice(key, EXAMPLES, (BATCH,), replace=False)
        value, grads = jax.value_and_grad(loss)(params, rows)
        updates, state = tx.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        share = AVERAGED / (count + AVERAGED)
        average = optax.incremental_update(params, average, share)
        level = jnp.where(count == 0, value, 0.8 * level + 0.2 * value)
        return params, average, state, level, jnp.maximum(largest, level)

    zero = jnp.zeros([])
    carry = (start, start, tx.init(start), zero, zero)
    params, average, _, _, largest = jax.lax.fori_loop(0, steps, step, carry)
    everything = jnp.arange(EXAMPLES)
    first = loss(start, everything)
    last, averaged = loss(params, everything), loss(average, everything)
    return Outcome(last / first, averaged / first, largest / first)


@functools.cache
def _program(method: Method, activation: str) -> Callable[..., Outcome]:
    one = functools.partial(run, method, ACTIVATIONS[activation])
    of_rates = jax.vmap(one, (None, None, 0))
    return jax.jit(jax.vmap(of_rates, (None, 0, None)))


def losses(
    method: Method, activation: str, steps: int, seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Loss at the end and largest averaged loss of each draw and rate.

    Both of shape ``[len(seeds), len(method.rates)]``, infinite where they are not
    finite.
    """
    rates = jnp.asarray(method.rates, jnp.float32)
    found = _program(method, activation)(steps, jnp.asarray(seeds), rates)
    last = np.asarray(found.averaged if method.is_averaged else found.last)
    both = last, np.asarray(found.largest)
    last, largest = (np.where(np.isfinite(each), each, np.inf) for each in both)
    return last, largest


class Standing(NamedTuple):
    """How a method compares with plain SGD after a number of steps.

    Attributes:
      mean: its mean loss over the draws as a part of SGD's, for the network where that
        is greater.
      ratios: losses of all runs of both networks, over SGD's at its best rate per draw.
      largest: the largest averaged loss, as a part of the first loss.
    """

    mean: float
    ratios: np.ndarray
    largest: float

    @property
    def num_beyond(self) -> int:
        """How many runs end beyond twice the loss of SGD."""
        return int(np.sum(self.ratios > 2))


def standing(method: Method, steps: int, seeds: Sequence[int]) -> Standing:
    """Compares a method, with one rate for all draws, with plain SGD."""
    means, ratios, peaks = [], [], []
    for name in ACTIVATIONS:
        of_sgd, _ = losses(SGD, name, steps, seeds)
        last, largest = losses(method, name, steps, seeds)
        best = last.mean(axis=0).argmin()
        means.append(last[:, best].mean() / of_sgd.mean(axis=0).min())
        least = np.maximum(of_sgd.min(axis=1), LEAST)
        ratios.append(np.maximum(last[:, best], LEAST) / least)
        peaks.append(largest[:, best].max())
    return Standing(float(max(means)), np.concatenate(ratios), float(max(peaks)))


def table(given: TinyBatchesArguments) -> Table:
    """A row per method.

    For each number of steps, the mean relative to SGD's and how many runs end beyond
    twice the loss of SGD; for all together the greatest of these, and the largest
    averaged loss.
    """
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    found = [[standing(m, steps, seeds) for steps in given.lengths] for m in METHODS]
    names = [f"{steps:,}" for steps in given.lengths]
    means = [[f"{one.mean:.2f}" for one in of_method] for of_method in found]
    beyond = [[f"{one.num_beyond}" for one in of_method] for of_method in found]
    greatest = [max(one.ratios.max() for one in of_method) for of_method in found]
    peaks = [max(one.largest for one in of_method) for of_method in found]
    columns = [
        _column("method", [method.name for method in METHODS]),
        *_columns([f"mean, {name} steps" for name in names], means),
        *_columns([f"beyond twice, {name}" for name in names], beyond),
        _column("greatest", [f"{ratio:.3g}" for ratio in greatest]),
        _column("largest averaged loss", [f"{peak:.1f}" for peak in peaks]),
    ]
    return Table(columns, "")


def _columns(headings: list[str], rows: list[list[str]]) -> list[Column]:
    fields = zip(*rows, strict=True)
    return [_column(*each) for each in zip(headings, map(list, fields), strict=True)]


def _column(heading: str, fields: list[str]) -> Column:
    return Column(heading, heading, fields)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(TinyBatchesArguments, prog=f"python -m {MODULE}", args=arguments)
    console = rich.console.Console()
    with ending_with_a_message(MODULE, arguments):
        for name, count in (("seeds", given.seeds), *_counts(given.lengths)):
            if count < 1:
                raise ValueError(f"{name}={count!r} must be at least 1")
        runs = given.seeds * len(ACTIVATIONS)
        console.print(
            "Loss of all examples after the last step: means over the draws, beside "
            f"plain SGD with its best rate; how many of {runs} runs are beyond twice "
            "the best rate of SGD for the same draw, and the greatest of these.\n"
        )
        console.print(table(given).markdown(), highlight=False, soft_wrap=True)


def _counts(lengths: Sequence[int]) -> list[tuple[str, int]]:
    return [("lengths", length) for length in lengths]


if __name__ == "__main__":
    main()
