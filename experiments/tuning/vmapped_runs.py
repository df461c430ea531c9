"""Several runs of one program in one compiled call, each with its own record."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import RunConfig
from experiments.data import Dataset
from experiments.records.files import Line, RecordWriter
from experiments.records.run import evaluation_of, named, write_steps
from experiments.training import (
    DivergedError,
    Program,
    Report,
    check_finite,
    hyperparameters_of,
)


def record_runs_together(
    paths: Sequence[Path],
    program: Program,
    configs: Sequence[RunConfig],
    dataset: Dataset,
) -> list[Line | None]:
    """Trains all runs at once; existing records are replaced.

    The runs differ in what `program_of` leaves out: learning rate, L2 factor, float
    options and seed. The seconds of a call are shared out equally among its runs. A run
    that diverges is stopped in its record and takes part, unseen, to the end.

    Args:
      paths: of the records.
      program: that the configurations share.
      configs: of the runs.
      dataset: what to train and evaluate on.

    Returns:
      The summaries; None for a run that diverged.
    """
    start = time.perf_counter()
    runs = range(len(configs))
    states = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(
            program.init(c.seed, c.learning_rate, hyperparameters_of(c))
            for c in configs
        ),
    )
    train = (
        jax.jit(jax.vmap(program.train, in_axes=(0, None)), donate_argnums=0)
        .lower(states, dataset.train)
        .compile()
    )
    compile_seconds = (time.perf_counter() - start) / len(configs)
    reports = configs[0].epochs // configs[0].epochs_per_report
    seconds, alive = 0.0, list(runs)
    summaries: list[Line | None] = [None for _ in runs]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(RecordWriter(path, config, overwrite=True))
            for path, config in zip(paths, configs, strict=True)
        ]
        for number in range(1, reports + 1):
            start = time.perf_counter()
            calls = []
            for _ in range(program.calls_per_report):
                states, metrics = train(states, dataset.train)
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
                write_steps(writers[run], report, program.gradient_equivalents, seconds)
                try:
                    check_finite(report, configs[run])
                except DivergedError as error:
                    writers[run].write("stopped", {"reason": str(error)})
                    alive.remove(run)
                    continue
                evaluation = evaluation_of(report, program, dataset, seconds + shared)
                writers[run].write("evaluation", evaluation)
                if number == reports:
                    summary = {
                        **evaluation,
                        **named("test", program.evaluate(report.state, dataset.test)),
                        "compile_seconds": compile_seconds,
                    }
                    writers[run].write("summary", summary)
                    summaries[run] = summary
            seconds += shared
    return summaries
