"""The jobs of a study, done in turn or by several processes side by side."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

from experiments.errors import UserError
from experiments.records.files import Line
from experiments.tuning.runner import PlannedRun, Runner


class PlannedJob(NamedTuple):
    """A job other than a training run.

    Attributes:
      path: the file that it leaves, by which it counts as finished.
      run: does the job; returns the result in a few words.
    """

    path: Path
    run: Callable[[], str]


Job: TypeAlias = PlannedRun | PlannedJob
Group: TypeAlias = Sequence[Job]
Results: TypeAlias = list[str]


class InTurn:
    """Does jobs in this process, one group after the other; a context manager."""

    def __init__(self, runner: Runner):
        self._runner = runner
        self._done: list[tuple[Group, Results]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to close."""

    @property
    def busy(self) -> bool:
        """Whether a result is to be fetched."""
        return bool(self._done)

    @property
    def has_room(self) -> bool:
        """Whether another group can be started."""
        return not self._done

    @property
    def longest(self) -> float:
        """Seconds of the longest group of runs so far."""
        return self._runner.longest

    def start(self, group: Group) -> None:
        """Does the jobs of a group."""
        self._done.append((group, _results(group, self._runner)))

    def next_result(self) -> tuple[Group, Results]:
        """A group, and a few words on each of its jobs."""
        return self._done.pop()


class Workers:
    """Processes that train runs side by side; a context manager.

    Each has one CPU core and one thread. Jobs other than runs are done in this process.

    Args:
      count: number of processes.
      runner: describes the runners of the processes, and does the other jobs.

    Attributes:
      longest: seconds of the longest group of runs so far.

    Raises:
      ValueError: if there are fewer cores than processes.
    """

    def __init__(self, count: int, runner: Runner):
        cores = sorted(os.sched_getaffinity(0))
        if count > len(cores):
            raise ValueError(
                f"workers={count!r} must be at most {len(cores)}, the number of CPU "
                "cores"
            )
        self._runner, self._count, self.longest = runner, count, 0.0
        self._running: dict[Future[Any], Group] = {}
        self._done: list[tuple[Group, Results]] = []
        context = multiprocessing.get_context("spawn")
        free = context.SimpleQueue()
        for core in cores[:count]:
            free.put(core)
        # Nothing is written: only this process can, so what the others read ends when
        # it closes the pipe, or is killed.
        self._reader, self._writer = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            count,
            mp_context=context,
            initializer=_set_up,
            initargs=(free, self._reader, runner.data_dir, runner.checkpoints),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # the processes end in the middle of their runs
            self._writer.close()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        self._writer.close()
        self._reader.close()

    @property
    def busy(self) -> bool:
        """Whether a result is to be waited for."""
        return bool(self._running or self._done)

    @property
    def has_room(self) -> bool:
        """Whether another group can be started."""
        return len(self._running) < self._count

    def start(self, group: Group) -> None:
        """Starts the jobs of a group."""
        if isinstance(group[0], PlannedJob):
            self._done.append((group, _results(group, self._runner)))
            return
        with _one_thread(), self._naming_what_ran():
            self._running[self._pool.submit(_train, group)] = group

    def next_result(self) -> tuple[Group, Results]:
        """A group that is done, and a few words on each of its jobs.

        Raises:
          UserError: if a process was killed; the message names the runs in progress.
        """
        if self._done:
            return self._done.pop()
        (future, *_), _ = wait(self._running, return_when=FIRST_COMPLETED)
        with self._naming_what_ran():
            seconds, results = future.result()
        self.longest = max(self.longest, seconds)
        return self._running.pop(future), results

    @contextlib.contextmanager
    def _naming_what_ran(self) -> Iterator[None]:
        """Ends with the runs that were in progress if a process was killed."""
        try:
            yield
        except BrokenProcessPool as error:
            names = [str(job.path) for group in self._running.values() for job in group]
            raise UserError(
                f"a process that trained one of {names} ended unexpectedly, perhaps "
                "for lack of memory; run the same command again to resume, with fewer "
                "workers if this recurs"
            ) from error


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The environment of processes that are to use one thread."""
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{before or ''} --xla_cpu_multi_thread_eigen=false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before


_runner_of_process: list[Runner] = []


def _set_up(free: Any, parent: Connection, data_dir: Path, checkpoints: bool) -> None:
    # Before the first computation, by which XLA counts its threads.
    os.sched_setaffinity(0, {free.get()})
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    _runner_of_process[:] = [Runner(data_dir, checkpoints=checkpoints)]


def _end_with_parent(parent: Connection) -> None:
    """Ends a process whose parent gave up or was killed, in the middle of its run."""
    multiprocessing.connection.wait([parent])
    os._exit(1)


def _train(group: Group) -> tuple[float, Results]:
    start = time.perf_counter()
    results = _results(group, _runner_of_process[0])
    return time.perf_counter() - start, results


def _results(group: Group, runner: Runner) -> Results:
    if isinstance(group[0], PlannedJob):
        return [group[0].run()]
    runs = [job for job in group if isinstance(job, PlannedRun)]
    return [_result(summary) for summary in runner.run(runs)]


def _result(summary: Line | None) -> str:
    if summary is None:
        return "diverged"
    return (
        f"training loss {summary['train_loss']:.4f}, test accuracy "
        f"{summary['test_accuracy']:.1%}, {summary['seconds']:.1f} s"
    )
