"""The driver: calls a compiled program until the run is over."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import RunConfig
from experiments.data import AnyDataset, Split
from experiments.errors import UserError
from experiments.training.host_loop import compile_host_loop, takes_host_loop
from experiments.training.program import Program
from experiments.training.state import TrainState
from experiments.training.step import Metrics

PyTree = Any


class Report(NamedTuple):
    """What `run_epochs` yields after ``config.epochs_per_report`` epochs, or earlier.

    Attributes:
      number: number of complete reports so far, including those before a restart.
      state: the state so far; the next call donates its memory.
      metrics: metrics of each step since the last report, as NumPy vectors.
      seconds: time that these steps took, without compilation.
      complete: whether these steps end ``config.epochs_per_report`` epochs; False for
        an earlier pause.
    """

    number: int
    state: TrainState
    metrics: dict[str, np.ndarray]
    seconds: float
    complete: bool = True


class DivergedError(UserError):
    """The training loss, the weights or an evaluated loss are no longer finite."""


class CompiledProgram(NamedTuple):
    """A `Program` with its training call compiled.

    Attributes:
      program: the functions.
      train: the compiled call, which donates the memory of the state.
      compile_seconds: time of tracing and compiling.
    """

    program: Program
    train: Callable[[TrainState, Split], tuple[TrainState, Metrics]]
    compile_seconds: float


def compile_program(program: Program, dataset: AnyDataset) -> CompiledProgram:
    """Compiles the training call ahead of time, so that no timing includes it."""
    start = time.perf_counter()
    shapes = program.feed(dataset.train).shapes
    train: Callable[[TrainState, Split], tuple[TrainState, Metrics]]
    if takes_host_loop(program):
        train = compile_host_loop(program, shapes)
    else:
        train = (
            jax.jit(program.train, donate_argnums=0)
            .lower(program.init(0, 1.0), shapes)
            .compile()
        )
    return CompiledProgram(program, train, time.perf_counter() - start)


def run_epochs(
    compiled: CompiledProgram,
    config: RunConfig,
    dataset: AnyDataset,
    state: TrainState,
    pause_seconds: float | None = None,
) -> Iterator[Report]:
    """Trains to the end of ``config.epochs``, with a report per ``epochs_per_report``.

    A state that was restored from a checkpoint resumes at its step. If a call returns a
    loss that is not finite, the run ends with a report that `check_finite` rejects.

    Args:
      compiled: the compiled program.
      config: settings of the run.
      dataset: the data to train on.
      state: the state before the first step, or a restored one.
      pause_seconds: time after which a report is yielded before it is complete, at the
        end of a call, so that the caller can save the state.
    """
    program = compiled.program
    per_report = program.calls_per_report
    reports = config.epochs // config.epochs_per_report
    done = int(state.step)
    feed = program.feed(dataset.train).open(config.seed, done)
    start = time.perf_counter()
    calls: list[Metrics] = []
    for call in range(done // program.steps_per_call + 1, reports * per_report + 1):
        state, metrics = compiled.train(state, next(feed))
        calls.append(metrics)
        # Checks the previous call, so that the device always has work queued.
        finite = len(calls) == 1 or bool(np.isfinite(calls[-2]["loss"]).all())
        complete = call % per_report == 0
        pause = (
            pause_seconds is not None and time.perf_counter() - start > pause_seconds
        )
        if finite and not complete and not pause:
            continue
        jax.block_until_ready((state, calls))
        seconds = time.perf_counter() - start
        stacked = jax.tree.map(lambda *xs: np.concatenate(xs), *jax.device_get(calls))
        yield Report(call // per_report, state, stacked, seconds, complete)
        if not finite:
            return
        start, calls = time.perf_counter(), []


def check_finite(report: Report, config: RunConfig) -> None:
    """Raises DivergedError if a loss of the report, or a weight, is not finite."""
    losses = report.metrics["loss"]
    end = int(report.state.step)
    if not np.isfinite(losses).all():
        bad = int(np.argmin(np.isfinite(losses)))
        what = f"the loss became {losses[bad]} at step {end - len(losses) + bad}"
        raise diverged(what, config)
    # The loss of a step is that of the weights before it.
    if not _are_finite(report.state.params):
        raise diverged(f"weights became infinite or nan at step {end - 1}", config)


def diverged(what: str, config: RunConfig) -> DivergedError:
    """The error for a run in which ``what`` happened."""
    return DivergedError(
        f"{what} with optimizer={config.optimizer!r} and learning_rate="
        f"{config.learning_rate!r}; the run was stopped; a smaller learning rate may "
        "help"
    )


def _are_finite(params: PyTree) -> bool:
    # Each flag is about a whole array, so every device holds the same one.
    flags = jax.tree.leaves(_finite_leaves(params))
    return all(bool(np.asarray(flag.addressable_shards[0].data)) for flag in flags)


@jax.jit
def _finite_leaves(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params)
