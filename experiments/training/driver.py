"""The driver: calls a compiled program until the run is over."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.config import RunConfig
from experiments.data import AnyDataset, Split
from experiments.errors import UserError
from experiments.training.program import Program
from experiments.training.step import Metrics, TrainState


class Report(NamedTuple):
    """What `run_epochs` yields after every ``config.epochs_per_report`` epochs.

    Attributes:
      number: number of reports so far, including those before a restart.
      state: the state so far; the next call donates its memory.
      metrics: metrics of each step since the last report, as NumPy vectors.
      seconds: time that these steps took, without compilation.
    """

    number: int
    state: TrainState
    metrics: dict[str, np.ndarray]
    seconds: float


class DivergedError(UserError):
    """The training loss is no longer finite."""


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
    compiled = (
        jax.jit(program.train, donate_argnums=0)
        .lower(program.init(0, 1.0), program.feed(dataset.train).shapes)
        .compile()
    )
    return CompiledProgram(program, compiled, time.perf_counter() - start)


def run_epochs(
    compiled: CompiledProgram, config: RunConfig, dataset: AnyDataset, state: TrainState
) -> Iterator[Report]:
    """Trains to the end of ``config.epochs``, reporting every ``epochs_per_report``.

    A state that was restored from a checkpoint resumes at its step. If a call returns a
    loss that is not finite, the run ends with a report that `check_finite` rejects.
    """
    program = compiled.program
    steps_per_report = program.calls_per_report * program.steps_per_call
    reports = config.epochs // config.epochs_per_report
    feed = program.feed(dataset.train).open(config.seed, int(state.step))
    for number in range(int(state.step) // steps_per_report, reports):
        start = time.perf_counter()
        calls: list[Metrics] = []
        for _ in range(program.calls_per_report):
            state, metrics = compiled.train(state, next(feed))
            calls.append(metrics)
            # Checks the previous call, so that the device always has work queued.
            if len(calls) > 1 and not np.isfinite(calls[-2]["loss"]).all():
                break
        jax.block_until_ready((state, calls))
        seconds = time.perf_counter() - start
        metrics = jax.tree.map(lambda *xs: np.concatenate(xs), *jax.device_get(calls))
        yield Report(number + 1, state, metrics, seconds)
        if len(calls) < program.calls_per_report:
            return


def check_finite(report: Report, config: RunConfig) -> None:
    """Raises DivergedError if a loss of the report is not finite."""
    losses = report.metrics["loss"]
    if np.isfinite(losses).all():
        return
    bad = int(np.argmin(np.isfinite(losses)))
    step = int(report.state.step) - len(losses) + bad
    raise DivergedError(
        f"the loss became {losses[bad]} at step {step} with optimizer="
        f"{config.optimizer!r} and learning_rate={config.learning_rate!r}; the run was "
        "stopped; a smaller learning rate may help"
    )
