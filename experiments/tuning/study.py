"""Running a study: its stages in order, with progress, resumed where it stopped.

A study is a list of stages. Each stage yields rounds of jobs that are independent of
each other; a round is planned when those before it have been completed, so that it may
depend on their records. A job that has its record is not repeated.
"""

import datetime
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import rich.console
import rich.progress

from experiments.training import program_of
from experiments.tuning.jobs import InTurn, Job, PlannedJob, Workers
from experiments.tuning.runner import Runner, finished
from experiments.tuning.sweep import Sweep, rounds


class Stage(NamedTuple):
    """A part of a study.

    Attributes:
      most_jobs: an upper bound of the number of jobs.
      rounds: the jobs; called after the earlier stages have been completed.
    """

    most_jobs: int
    rounds: Callable[[], Iterator[Sequence[Job]]]


def sweep_stage(sweep: Sweep, folder: Path) -> Stage:
    """A sweep as a stage."""
    return Stage(sweep.most_runs, lambda: rounds(sweep, folder))


def jobs_stage(jobs: Sequence[Job]) -> Stage:
    """Independent jobs as a stage."""
    return Stage(len(jobs), lambda: iter([jobs]))


def run_study(
    stages: Sequence[Stage],
    runner: Runner,
    console: rich.console.Console,
    *,
    together: int = 1,
    workers: int = 1,
    seconds: float = math.inf,
    show_each: bool = True,
) -> bool:
    """Runs all jobs that are not finished.

    Args:
      stages: parts of the study, in their order.
      runner: trains the runs.
      console: to print on.
      together: number of runs of one program that may share a compiled call.
      workers: number of processes that train side by side, with a CPU core each.
      seconds: a time limit: no job is started that would end later, judged by the
        longest one so far.
      show_each: whether to print a line per job, not only the progress.

    Returns:
      Whether the study is complete.

    Raises:
      ValueError: if a record is of another configuration, before any run of its round.
    """
    for name, count in (("together", together), ("workers", workers)):
        if count < 1:
            raise ValueError(f"{name}={count!r} must be at least 1")
    if not seconds > 0:
        raise ValueError(f"seconds={seconds!r} must be greater than 0")
    end = time.monotonic() + seconds
    with (
        _Progress(sum(stage.most_jobs for stage in stages), console) as progress,
        Workers(workers, runner) if workers > 1 else InTurn(runner) as team,
    ):
        for stage in stages:
            most = progress.jobs + stage.most_jobs
            for jobs in stage.rounds():
                pending = [job for job in jobs if not _is_finished(job)]
                progress.skip(len(jobs) - len(pending))
                left = deque(_groups(pending, together))
                while left or team.busy:
                    late = time.monotonic() + team.longest > end
                    if left and team.has_room and not late:
                        progress.starts(left[0][0])
                        team.start(left.popleft())
                    elif team.busy:
                        group, results = team.next_result()
                        for job, result in zip(group, results, strict=True):
                            progress.finish(job, result if show_each else None)
                    else:
                        progress.stop_before(left[0][0])
                        return False
            progress.drop(most - progress.jobs)
        progress.end()
    return True


def _is_finished(job: Job) -> bool:
    if isinstance(job, PlannedJob):
        return job.path.exists()
    return finished(job) is not None


def _groups(jobs: Sequence[Job], together: int) -> Iterator[list[Job]]:
    """Neighbors of one program, at most ``together``; every other job alone."""
    group: list[Job] = []
    for job in jobs:
        if group and (len(group) == together or not _share(group[0], job)):
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def _share(first: Job, second: Job) -> bool:
    if isinstance(first, PlannedJob) or isinstance(second, PlannedJob):
        return False
    return program_of(first.config) == program_of(second.config)


class _Progress:
    """Shows finished jobs and the remaining time; a context manager.

    The remaining time is the mean time of a job in this call times the jobs left.

    Attributes:
      jobs: number of finished jobs, including those of earlier calls.
    """

    def __init__(self, total: int, console: rich.console.Console):
        self._console = console
        self._start, self._done, self._skipped = time.monotonic(), 0, 0
        self.jobs, self._total = 0, total
        self._bar = rich.progress.Progress(
            rich.progress.MofNCompleteColumn(" of "),
            rich.progress.BarColumn(),
            "{task.fields[left]} to go",
            "{task.description}",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, left="?")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def skip(self, jobs: int) -> None:
        """Counts jobs that an earlier call has finished."""
        self.jobs += jobs
        self._skipped += jobs
        self._show()

    def drop(self, jobs: int) -> None:
        """Counts jobs that were not needed."""
        self._total -= jobs
        self._show()

    def starts(self, job: Job) -> None:
        """Shows which job is running."""
        self._bar.update(self._task, description=_name(job))

    def finish(self, job: Job, result: str | None) -> None:
        """Counts a job, and prints its result."""
        self.jobs += 1
        self._done += 1
        self._show()
        if result is not None:
            self._print(
                f"{self.jobs} of {self._total}, {self._left()} to go: {_name(job)}: "
                f"{result}"
            )

    def stop_before(self, job: Job) -> None:
        """Prints that the time is up."""
        self._print(
            f"stopped before {_name(job)}, {self.jobs} of {self._total} done; run the "
            "same command again to resume"
        )

    def end(self) -> None:
        """Prints how many jobs were not repeated, if any."""
        if self._skipped:
            self._print(
                f"{self._skipped} of {self.jobs} were recorded by an earlier call and "
                "are not repeated"
            )

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)

    def _show(self) -> None:
        self._bar.update(
            self._task, completed=self.jobs, total=self._total, left=self._left()
        )

    def _left(self) -> str:
        if not self._done:
            return "?"
        each = (time.monotonic() - self._start) / self._done
        return str(datetime.timedelta(seconds=round(each * (self._total - self.jobs))))


def _name(job: Job) -> str:
    return f"{job.path.parent.name}/{job.path.stem}"
