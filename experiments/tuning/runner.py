"""Runs one after the other, each with a record; those that can share a program do."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import rich.console

from experiments import data, optimizers
from experiments.config import RunConfig, changes
from experiments.records.files import Line, RunRecord, read_record
from experiments.records.run import record_run
from experiments.training import (
    CompiledProgram,
    DivergedError,
    Program,
    compile_program,
    make_program,
    program_of,
)
from experiments.tuning.vmapped_runs import record_runs_together

MAX_PROGRAMS = 16  # that are kept at a time


class PlannedRun(NamedTuple):
    """A run and the place of its record.

    Attributes:
      config: of the run.
      path: of the record.
      trials: of the search that led to the run, to be kept in the record.
    """

    config: RunConfig
    path: Path
    trials: Sequence[Line] = ()


def finished(planned: PlannedRun) -> RunRecord | None:
    """The record of a run that reached its end or diverged, else None.

    Raises:
      ValueError: if the record is of another configuration.
    """
    record = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        record = read_record(planned.path)
    if record is None or (record.summary is None and record.stopped is None):
        return None
    changed = changes(
        dataclasses.asdict(record.config), dataclasses.asdict(planned.config)
    )
    if changed:
        raise ValueError(
            f"{planned.path} is the record of another configuration than the one that "
            f"is to be run now: {changed}; go on with its own, or name another folder"
        )
    return record


class Runner:
    """Trains planned runs.

    Args:
      data_dir: folder of all prepared data sets.
      console: to print on.
    """

    def __init__(self, data_dir: Path, console: rich.console.Console):
        self._data_dir = data_dir
        self._console = console
        self._datasets: dict[tuple[str, data.DataOptions], data.Dataset] = {}
        self._programs: dict[str, CompiledProgram] = {}
        self.longest = 0.0

    def dataset(self, config: RunConfig) -> data.Dataset:
        """The data set of a run, loaded once."""
        key = config.dataset, config.data_options(self._data_dir)
        if key not in self._datasets:
            self._datasets[key] = data.load(*key)
        return self._datasets[key]

    def program(self, config: RunConfig) -> Program:
        """The functions of a run, not compiled.

        Raises:
          ValueError: if a number of the configuration is out of its range.
        """
        # The program takes the numbers as they come; here they are checked.
        optimizers.build(
            config.optimizer, config.learning_rate, config.optimizer_options
        )
        return make_program(program_of(config), self.dataset(config))

    def compiled(self, config: RunConfig) -> CompiledProgram:
        """The program of a run, compiled once for all runs that can share it."""
        program = self.program(config)
        key = repr(program_of(config))
        if key not in self._programs:
            if len(self._programs) == MAX_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            self._programs[key] = compile_program(program, self.dataset(config))
        return self._programs[key]

    def run(self, planned: PlannedRun) -> None:
        """Trains and leaves a record; a run that diverges leaves one that says so."""
        start = time.perf_counter()
        config = planned.config
        summary: Line | None = None
        with contextlib.suppress(DivergedError):
            summary = record_run(
                planned.path,
                self.compiled(config),
                config,
                self.dataset(config),
                trials=planned.trials,
                overwrite=True,
            )
        self.longest = max(self.longest, time.perf_counter() - start)
        self._tell(planned, summary)

    def run_together(self, planned: Sequence[PlannedRun]) -> None:
        """Trains runs that share a program in one compiled call, with a record each.

        Raises:
          ValueError: if they do not share a program.
        """
        configs = [run.config for run in planned]
        if len({repr(program_of(config)) for config in configs}) > 1:
            raise ValueError(
                f"{[run.path.stem for run in planned]} do not share a program, so they "
                "cannot run together; runs may differ in learning rate, L2 factor, "
                "float options and seed"
            )
        for config in configs:
            self.program(config)
        summaries = record_runs_together(
            [run.path for run in planned],
            self.program(configs[0]),
            configs,
            self.dataset(configs[0]),
        )
        for run, summary in zip(planned, summaries, strict=True):
            self._tell(run, summary)

    def _tell(self, planned: PlannedRun, summary: Line | None) -> None:
        told = "diverged"
        if summary is not None:
            told = (
                f"test accuracy {summary['test_accuracy']:.1%}, "
                f"{summary['seconds']:.0f} s, {summary['images_per_second']:.0f} "
                "images/s"
            )
        self._console.print(
            f"{planned.path.parent.name}/{planned.path.stem}: {told}", soft_wrap=True
        )
