"""``python -m experiments.classical``: deterministic solvers on classical problems.

Every pair of solver and problem appends one line to a file of records. Recorded pairs
are not run again; the table and the picture are made from the records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

import tyro
from rich.console import Console
from rich.progress import track

from experiments.classical import profiles
from experiments.classical.records import complete_lines, make_ready
from experiments.errors import UserError, ending_with_a_message, needing

EXTRAS = "experiments,classical"  # the packages of the solvers and problems
REFERENCE = "CG_DESCENT default"
SOLVERS = (
    "nlcg_optax limited-memory",
    "nlcg_optax hs+",
    "nlcg_optax hz",
    REFERENCE,
    "CG_DESCENT L-BFGS",
    "CG_DESCENT memory 0",
    "optax lbfgs",
    "SciPy L-BFGS-B",
    "SciPy CG",
    "optimistix NonlinearCG",
    "jaxopt NonlinearCG zoom",
    "jaxopt NonlinearCG Hager-Zhang",
)
# Without the C program, which has no float32, and with the two BFGS of JAX.
SOLVERS_IN_FLOAT32 = (
    "nlcg_optax limited-memory",
    "nlcg_optax hs+",
    "nlcg_optax hz",
    "optax lbfgs",
    "SciPy L-BFGS-B",
    "SciPy CG",
    "jax.scipy BFGS",
    "optimistix BFGS",
    "optimistix NonlinearCG",
    "jaxopt NonlinearCG zoom",
    "jaxopt NonlinearCG Hager-Zhang",
)
REFERENCES = (REFERENCE, "optax lbfgs")  # the first of them that has records
PACKAGES = (
    "nlcg-optax",
    "jax",
    "optax",
    "scipy",
    "optimistix",
    "jaxopt",
    "sif2jax",
    "pycgdescent",
    "numpy",
)
WORKER = (sys.executable, "-m", "experiments.classical.worker")
# For starting a worker and for compiling, which are not charged to the solver.
GRACE_SECONDS = 120.0
EXIT_SECONDS = 5.0  # in which a process that closed its output ends
LAST_LINES = 20  # of what a worker wrote before it ended
# Seconds to wait per second of processor time, on a machine that has other work.
BUSY = 4.0
# Settings that all records of a file share; a task has them, too.
SETTINGS = ("precision", "max_work", "max_seconds")
NO_ANSWER = {
    "dimension": 0,
    "values": 0,
    "gradients": 0,
    "start_value": math.nan,
    "value": math.nan,
    "grad_max": math.nan,
    "solved": False,
    "event": "no answer",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares deterministic solvers on classical problems.

    Attributes:
        problems: the set of problems.
        precision: dtype of the objective and the solvers; in float32 our methods use
            their defaults, the peers run as long as they find lower points, and the
            same problem in float64 decides whether the lowest point is a solution.
        solvers: names of solvers, as in the table; by default all with this precision.
        records: file of records, one JSON line each; it is appended to. By default
            runs/classical.jsonl or, in float32, runs/classical_float32.jsonl.
        output: folder of the table and the picture, which are named after the records.
        max_work: budget per problem in gradient-equivalents.
        max_seconds: limit on processor time per problem.
        report_only: make the table and the picture without running anything.
    """

    problems: Literal["all", "mgh", "development", "small"] = "all"
    precision: Literal["float64", "float32"] = "float64"
    solvers: tuple[str, ...] = ()
    records: Path | None = None
    output: Path = Path("runs")
    max_work: float = 10_000.0
    max_seconds: float = 60.0
    report_only: bool = False

    def filled(self) -> Config:
        """With solvers and records in place of their defaults.

        Raises:
            ValueError: if a solver is unknown.
        """
        single = self.precision == "float32"
        known = SOLVERS_IN_FLOAT32 if single else SOLVERS
        for solver in self.solvers:
            if solver not in known:
                raise ValueError(f"solvers has {solver!r}; allowed are {list(known)}")
        name = "classical_float32.jsonl" if single else "classical.jsonl"
        return dataclasses.replace(
            self,
            solvers=self.solvers or known,
            records=self.records or Path("runs") / name,
        )


class Worker:
    """A worker process that is replaced when a solver hangs or crashes.

    Attributes:
        origin: versions, device and commit of the process, once it was asked.
    """

    def __init__(self) -> None:
        self.origin: dict[str, Any] = {}
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def ask(self, task: dict[str, Any], patience: float) -> dict[str, Any] | None:
        """Returns the record, or None if the solver hung, or crashed the process.

        Raises:
            UserError: if the process does not start, or exits by itself: no solver
                failed then.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no answer
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        line = _line_of(process, patience)
        if not line:
            status = _status_of(process)
            if status is not None and status >= 0:  # negative: the number of a signal
                what = f"exited with status {status} instead of answering {task}"
                raise self._failure(what)
            self.close()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        self._errors = tempfile.TemporaryFile(  # noqa: SIM115 (closed with the process)
            "w+", encoding="utf-8", errors="replace"
        )
        self._process = subprocess.Popen(
            WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # A host callback that evaluates a JAX function needs a second thread of the
            # pool besides the one that waits for it, even on one core.
            env=os.environ | {"NPROC": "8"},
        )
        line = _line_of(self._process, GRACE_SECONDS)
        if not line:
            status = _status_of(self._process)
            what = "is not ready in time" if status is None else "did not start"
            raise self._failure(what)
        self.origin = json.loads(line)
        return self._process

    def _failure(self, what: str) -> UserError:
        """Ends the process; the error has the last lines that it wrote."""
        errors = self._errors
        assert errors is not None
        self._errors = None
        self.close()
        with errors:
            errors.seek(0)
            last = "".join(errors.readlines()[-LAST_LINES:])
        return UserError(f"the worker process {what}; it wrote:\n{last}")

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            # Closes its pipes; one may hold a task that was not sent.
            with contextlib.suppress(BrokenPipeError), self._process as process:
                process.kill()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None


def _line_of(process: subprocess.Popen[str], patience: float) -> str:
    """The next line of a process; empty if there is none in time, or it ended."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], patience)
    return process.stdout.readline() if ready else ""


def _status_of(process: subprocess.Popen[str]) -> int | None:
    """The exit status of a process that gave no line; None if it still runs."""
    try:
        return process.wait(EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def read(path: Path) -> list[dict[str, Any]]:
    """Reads records; without a file there are none.

    Raises:
        ValueError: if a line is not a record; the message names file and line.
    """
    records = []
    for number, line in enumerate(complete_lines(path), start=1):
        try:
            record = json.loads(line)
            record["solver"], record["problem"], record["solved"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number} is not a record of experiments.classical"
            ) from error
        records.append(record)
    return records


def versions() -> dict[str, str]:
    """Versions of Python and of the packages involved."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def check_settings(config: Config, records: Sequence[dict[str, Any]]) -> None:
    """Refuses to add to records of another precision or of other budgets.

    Raises:
        ValueError: the message names the file and the setting.
    """
    for record in records:
        for name in SETTINGS:
            given = getattr(config, name)
            was = record.get(name, given)
            if was != given:
                raise ValueError(
                    f"{name}={given!r} was {was!r} in {str(config.records)!r}; repeat "
                    "the earlier command to resume it, or name another file of records"
                )


def run(config: Config, console: Console) -> None:
    """Runs what is not recorded yet.

    Raises:
        UserError: if a package is missing, no worker starts, or one exits by itself.
        ValueError: if the file has records of another precision or of other budgets.
    """
    # Imported here because only running needs the packages of the solvers.
    with needing(EXTRAS):
        from experiments.classical import problems

    assert config.records is not None
    names = problems.select(config.problems)
    records = read(config.records)
    check_settings(config, records)
    done = {(r["solver"], r["problem"]) for r in records}
    settings = {name: getattr(config, name) for name in SETTINGS}
    tasks = [
        {"solver": solver, "problem": name, **settings}
        # Problem by problem, so that the check of a point is compiled once.
        for name in names
        for solver in config.solvers
        if (solver, name) not in done
    ]
    make_ready(config.records)
    worker, stamp = Worker(), {"versions": versions()}
    try:
        with config.records.open("a") as file:
            for task in track(tasks, console=console, description="solving"):
                patience = BUSY * config.max_seconds + GRACE_SECONDS
                record = worker.ask(task, patience)
                if record is None:
                    budgets = {"work": config.max_work, "seconds": config.max_seconds}
                    record = {**task, **NO_ANSWER, **budgets}
                file.write(json.dumps(record | worker.origin | stamp) + "\n")
                file.flush()
    finally:
        worker.close()


def report(config: Config, console: Console) -> None:
    """Writes the table and the picture of the chosen solvers.

    Raises:
        ValueError: if none of them has a record.
    """
    assert config.records is not None
    records: profiles.Records = {solver: {} for solver in config.solvers}
    for record in read(config.records):
        if record["solver"] in records:
            records[record["solver"]][record["problem"]] = record
    records = {solver: by for solver, by in records.items() if by}
    if not records:
        raise ValueError(f"records={str(config.records)!r} holds none of the solvers")
    reference = next((r for r in REFERENCES if r in records), next(iter(records)))
    text = profiles.table(records, reference)
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / config.records.stem
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    profiles.draw(records, path.with_suffix(".png"))
    console.print(text, soft_wrap=True, markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    module = "experiments.classical"
    config = tyro.cli(Config, prog=f"python -m {module}", args=arguments)
    console = Console()
    with ending_with_a_message(module, arguments):
        config = config.filled()
        if not config.report_only:
            run(config, console)
        report(config, console)


if __name__ == "__main__":
    main()
