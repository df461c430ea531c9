"""Several runs of one program in one compiled call, each with its own record."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import RunConfig
from experiments.data import Dataset, Split
from experiments.records.files import Line, RecordWriter
from experiments.records.reports import (
    record_evaluation,
    record_steps,
    record_summary,
)
from experiments.training import (
    DivergedError,
    Metrics,
    Program,
    Report,
    TrainState,
    hyperparameters_of,
)


class VmappedProgram(NamedTuple):
    """A program whose training call is compiled for a number of runs.

    Attributes:
      program: the functions of one run.
      train: as ``program.train``, with states and metrics stacked along a first axis.
      compile_seconds: time of compiling per run, including tracing.
    """

    program: Program
    train: Callable[[TrainState, Split], tuple[TrainState, Metrics]]
    compile_seconds: float


def compile_vmapped(program: Program, runs: int, dataset: Dataset) -> VmappedProgram:
    """Compiles the training call for a number of runs that share the data.

    Its loop over micro-batches is compiled, too.

    Raises:
      ValueError: if the configuration asks for a loop on the host.
    """
    if program.config.micro_batch_loop == "host":
        raise ValueError(
            f"micro_batch_loop='host' does not allow {runs} runs in one call; use "
            "'compiled' or 'auto'"
        )
    start = time.perf_counter()
    states = _stack([program.init(0, 1.0)] * runs)
    train = (
        jax.jit(jax.vmap(program.train, in_axes=(0, None)), donate_argnums=0)
        .lower(states, dataset.train)
        .compile()
    )
    return VmappedProgram(program, train, (time.perf_counter() - start) / runs)


def record_runs_together(
    paths: Sequence[Path],
    vmapped: VmappedProgram,
    configs: Sequence[RunConfig],
    dataset: Dataset,
    trials: Sequence[Sequence[Line]],
) -> list[Line | None]:
    """Trains all runs at once; existing records are replaced.

    The runs differ in what `program_of` leaves out: learning rate, L2 factor, float
    options and seed. The seconds of a call are divided equally among its runs. A run
    that diverges is stopped in its record; its results are discarded from then on.

    Args:
      paths: files of the records.
      vmapped: the program that the configurations share, compiled for their number.
      configs: settings of the runs.
      dataset: data to train and evaluate on.
      trials: for each run, the trials of its search, to be kept in its record.

    Returns:
      The summaries; None for a run that diverged.
    """
    program = vmapped.program
    states = _stack(
        [program.init(c.seed, c.learning_rate, hyperparameters_of(c)) for c in configs]
    )
    reports = configs[0].epochs // configs[0].epochs_per_report
    seconds, alive = 0.0, list(range(len(configs)))
    summaries: list[Line | None] = [None for _ in configs]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(RecordWriter(path, config, overwrite=True))
            for path, config in zip(paths, configs, strict=True)
        ]
        for writer, lines in zip(writers, trials, strict=True):
            for line in lines:
                writer.write("trial", line)
        for number in range(1, reports + 1):
            start = time.perf_counter()
            calls = []
            for _ in range(program.calls_per_report):
                states, metrics = vmapped.train(states, dataset.train)
                calls.append(metrics)
            jax.block_until_ready(states)
            shared = (time.perf_counter() - start) / len(configs)
            columns = jax.tree.map(
                lambda *xs: np.concatenate(xs, axis=1), *jax.device_get(calls)
            )
            for run in list(alive):
                report = Report(
                    number,
                    jax.tree.map(lambda leaf, run=run: leaf[run], states),
                    {name: column[run] for name, column in columns.items()},
                    shared,
                )
                try:
                    summaries[run] = _recorded(
                        writers[run], report, vmapped, dataset, configs[run], seconds
                    )
                except DivergedError:
                    alive.remove(run)
            seconds += shared
    return summaries


def _recorded(
    writer: RecordWriter,
    report: Report,
    vmapped: VmappedProgram,
    dataset: Dataset,
    config: RunConfig,
    seconds: float,
) -> Line | None:
    """Records the report of a run; returns the summary after the last one."""
    program = vmapped.program
    record_steps(writer, report, program, config, seconds)
    evaluation = record_evaluation(
        writer, report, program, dataset, config, seconds + report.seconds
    )
    if report.number < config.epochs // config.epochs_per_report:
        return None
    evaluation["compile_seconds"] = vmapped.compile_seconds
    return record_summary(writer, report.state, evaluation, program, dataset, config)


def _stack(states: Sequence[TrainState]) -> TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
