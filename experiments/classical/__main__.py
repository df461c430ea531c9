"""Runs the classical benchmark: `python -m experiments.classical`.

Every solver and problem leaves one line in a file of records; what is there already is
not run again. Table and picture are made from the records.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import select
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.progress import track

from experiments.classical import profiles

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
# Compiling and the start of a worker are not charged to the solver but not unlimited.
GRACE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Classical benchmark of deterministic solvers.

    Attributes:
        problems: which problems.
        solvers: which solvers, out of the names in the table; all by default.
        records: file of records, one JSON line each; it is appended to.
        output: folder for table and picture.
        max_work: budget in gradient-equivalents, each problem.
        max_seconds: limit of time, each problem.
        report_only: make table and picture without running anything.
    """

    problems: Literal["all", "mgh", "development", "small"] = "all"
    solvers: tuple[str, ...] = SOLVERS
    records: Path = Path("runs/classical.jsonl")
    output: Path = Path("runs")
    max_work: float = 10_000.0
    max_seconds: float = 60.0
    report_only: bool = False


class Worker:
    """A worker process that is replaced when it hangs or dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, task: dict[str, Any], patience: float) -> dict[str, Any] | None:
        """Returns the record, or None if the worker gave no answer in time."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "experiments.classical.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                # A host callback that evaluates a JAX function needs a thread of the
                # pool besides the one that waits for it, also on one core.
                env=os.environ | {"NPROC": "8"},
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], patience)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.close()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def read(path: Path) -> list[dict[str, Any]]:
    """Reads records; no file is no records."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def versions() -> dict[str, str]:
    """Versions of what takes part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def run(config: Config, console: Console) -> None:
    """Runs what the file of records does not hold yet."""
    # Not at the top: naming the solvers and reporting need none of these packages.
    from experiments.classical import problems

    names = problems.select(config.problems)
    done = {(r["solver"], r["problem"]) for r in read(config.records)}
    tasks = [
        {
            "solver": solver,
            "problem": name,
            "max_work": config.max_work,
            "max_seconds": config.max_seconds,
        }
        for solver in config.solvers
        for name in names
        if (solver, name) not in done
    ]
    config.records.parent.mkdir(parents=True, exist_ok=True)
    worker, stamp = Worker(), versions()
    with config.records.open("a") as file:
        for task in track(tasks, console=console, description="solving"):
            record = worker.ask(task, config.max_seconds + GRACE_SECONDS)
            if record is None:
                record = task | {
                    "dimension": 0,
                    "values": 0,
                    "gradients": 0,
                    "work": config.max_work,
                    "seconds": config.max_seconds,
                    "start_value": float("nan"),
                    "value": float("nan"),
                    "grad_max": float("nan"),
                    "solved": False,
                    "event": "no answer",
                }
            file.write(json.dumps(record | {"versions": stamp}) + "\n")
            file.flush()
    worker.close()


def report(config: Config, console: Console) -> None:
    """Writes table and picture of the chosen solvers."""
    records: profiles.Records = {solver: {} for solver in config.solvers}
    for record in read(config.records):
        if record["solver"] in records:
            records[record["solver"]][record["problem"]] = record
    records = {solver: by for solver, by in records.items() if by}
    if not records:
        console.print(f"no records in {config.records}")
        return
    reference = REFERENCE if REFERENCE in records else next(iter(records))
    text = profiles.table(records, reference)
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "classical.md").write_text(text + "\n")
    profiles.plot(records, config.output / "classical.png")
    console.print(text, soft_wrap=True, markup=False)


def main() -> None:
    """Command line."""
    config = tyro.cli(Config, description=__doc__)
    console = Console()
    unknown = set(config.solvers) - set(SOLVERS)
    if unknown:
        raise SystemExit(f"solvers: unknown {sorted(unknown)}, allowed {SOLVERS}")
    if not config.report_only:
        run(config, console)
    report(config, console)


if __name__ == "__main__":
    main()
