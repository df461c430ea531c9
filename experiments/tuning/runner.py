"""Runs with a record each; those that can share a compiled program do."""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from experiments import data, optimizers
from experiments.config import RunConfig, changes
from experiments.records.files import Line, RunRecord, read_record, record_lines
from experiments.records.run import record_run
from experiments.training import (
    CompiledProgram,
    DivergedError,
    Program,
    compile_program,
    make_program,
    program_of,
)
from experiments.training.checkpoints import Checkpoints
from experiments.tuning.vmapped_runs import (
    VmappedProgram,
    compile_vmapped,
    record_runs_together,
)

MAX_PROGRAMS = 32  # kept at a time, of each kind

K = TypeVar("K")
V = TypeVar("V")


class PlannedRun(NamedTuple):
    """A run and the place of its record.

    Attributes:
      config: settings of the run.
      path: file of the record.
      trials: results of the search that led to the run, to be kept in the record.
    """

    config: RunConfig
    path: Path
    trials: Sequence[Line] = ()


def finished(planned: PlannedRun) -> RunRecord | None:
    """The record of a run that was completed or diverged, else None.

    Raises:
      ValueError: if the file is not a record, or one of another configuration or of a
        version with other settings.
    """
    path = planned.path
    if not path.exists() or not record_lines(path, interrupted=True):
        return None  # or killed before the header was written
    record = read_record(path, interrupted=True)
    if record.summary is None and record.stopped is None:
        return None
    changed = changes(
        dataclasses.asdict(record.config), dataclasses.asdict(planned.config)
    )
    if changed:
        raise ValueError(
            f"{path} is the record of another configuration: {changed}; repeat "
            "the earlier command to resume it, or use another folder"
        )
    return record


class Runner:
    """Trains planned runs.

    Args:
      data_dir: folder of all prepared data sets.
      checkpoints: whether single runs save checkpoints beside their records, so that a
        run that was killed resumes; for runs that take longer than some minutes.

    Attributes:
      data_dir: as given.
      checkpoints: as given.
      longest: seconds of the longest call so far.
    """

    def __init__(self, data_dir: Path, *, checkpoints: bool = False):
        self.data_dir = data_dir
        self.checkpoints = checkpoints
        self._datasets: dict[tuple[str, data.DataOptions], data.Dataset] = {}
        self._compiled: dict[str, CompiledProgram] = {}
        self._vmapped: dict[tuple[str, int], VmappedProgram] = {}
        self.longest = 0.0

    def dataset(self, config: RunConfig) -> data.Dataset:
        """The data set of a run, loaded once."""
        key = config.dataset, config.data_options(self.data_dir)
        if key not in self._datasets:
            self._datasets[key] = data.load(*key)
        return self._datasets[key]

    def program(self, config: RunConfig) -> Program:
        """The functions of a run, not compiled.

        Raises:
          ValueError: if a number of the configuration is out of its range.
        """
        self._check(config)
        return make_program(program_of(config), self.dataset(config))

    def run(self, planned: Sequence[PlannedRun]) -> list[Line | None]:
        """Trains runs and leaves a record of each; several share a compiled call.

        Args:
          planned: one run, or several that share a program.

        Returns:
          The summaries; None for a run that diverged, whose record says so.

        Raises:
          ValueError: if several runs do not share a program.
        """
        start = time.perf_counter()
        for run in planned:
            self._check(run.config)
        train = self._one_run if len(planned) == 1 else self._together
        summaries = train(planned)
        self.longest = max(self.longest, time.perf_counter() - start)
        return summaries

    def _one_run(self, planned: Sequence[PlannedRun]) -> list[Line | None]:
        (run,) = planned
        dataset = self.dataset(run.config)
        compiled = _kept(
            self._compiled,
            repr(program_of(run.config)),
            lambda: compile_program(self.program(run.config), dataset),
        )
        folder = run.path.with_suffix(".checkpoints")
        summary = None
        with (
            contextlib.suppress(DivergedError),
            Checkpoints(str(folder), run.config, keep=1)
            if self.checkpoints
            else contextlib.nullcontext() as checkpoints,
        ):
            summary = record_run(
                run.path,
                compiled,
                run.config,
                dataset,
                trials=run.trials,
                overwrite=True,
                checkpoints=checkpoints,
            )
        if self.checkpoints:
            shutil.rmtree(folder)
        return [summary]

    def _together(self, planned: Sequence[PlannedRun]) -> list[Line | None]:
        configs = [run.config for run in planned]
        if len({repr(program_of(config)) for config in configs}) > 1:
            raise ValueError(
                f"{[run.path.stem for run in planned]} do not share a program, so they "
                "cannot run together; runs may differ in learning rate, L2 factor, "
                "float options and seed"
            )
        dataset = self.dataset(configs[0])
        vmapped = _kept(
            self._vmapped,
            (repr(program_of(configs[0])), len(planned)),
            lambda: compile_vmapped(self.program(configs[0]), len(planned), dataset),
        )
        return record_runs_together(
            [run.path for run in planned],
            vmapped,
            configs,
            dataset,
            [run.trials for run in planned],
        )

    def _check(self, config: RunConfig) -> None:
        # The numbers are inputs of the program, which cannot check them.
        optimizers.build(
            config.optimizer, config.learning_rate, config.optimizer_options
        )


def _kept(cache: dict[K, V], key: K, make: Callable[[], V]) -> V:
    """The value at a key, made once; if there are too many, the oldest is dropped."""
    if key not in cache:
        if len(cache) == MAX_PROGRAMS:
            del cache[next(iter(cache))]
        cache[key] = make()
    return cache[key]
