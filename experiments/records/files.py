"""The record of a run: one JSON object per line, written during the run.

The first line is the header (configuration, versions, device, commit). Trials of the
search that chose the learning rate, steps and evaluations follow, and last the summary,
or the reason why the run was stopped. A number that is not finite is null, and in the
configuration ``"inf"``, ``"-inf"`` or ``"nan"``. If the first part was lost,
``begins_at`` in the header is the step of the first line. Where a run was resumed, a
line has the step and the versions, device and commit from there on.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from experiments.config import RunConfig
from experiments.records.old_names import current_config

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "nlcg-optax")
KINDS = ("header", "resumed", "trial", "step", "evaluation", "summary", "stopped")

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A record that was read back.

    Attributes:
      config: the configuration, with today's names.
      header: the whole first line, as it was written.
      trials: lines of the search for the learning rate.
      steps: metrics of each step.
      evaluations: figures on whole splits.
      summary: the last line of a run that reached its end, else None.
      stopped: the reason why the run was stopped, or None.
      resumed: lines about the places where the run was resumed.
    """

    config: RunConfig
    header: Line
    trials: list[Line]
    steps: list[Line]
    evaluations: list[Line]
    summary: Line | None
    stopped: str | None
    resumed: tuple[Line, ...] = ()

    @property
    def commits(self) -> tuple[str | None, ...]:
        """The commits that the run was made with, each once, in order."""
        lines = (self.header, *self.resumed)
        return tuple(dict.fromkeys(line["commit"] for line in lines))

    def series(self, name: str) -> list[float]:
        """A metric of the steps; NaN where it was not finite."""
        return [math.nan if s[name] is None else s[name] for s in self.steps]


class RecordWriter:
    """Writes a record; a context manager.

    Args:
      path: path of the file; its folder is created.
      config: configuration of the run, for the header.
      overwrite: whether an existing record is replaced.
      resume: whether an existing record is continued.
      begins_at: the first step that is written, if a record is continued or its earlier
        steps were lost.

    Raises:
      FileExistsError: if the record exists and is neither replaced nor continued.
      OSError: if the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        *,
        overwrite: bool = False,
        resume: bool = False,
        begins_at: int = 0,
    ):
        if path.exists() and not (overwrite or resume):
            raise record_exists(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a" if resume else "w", encoding="utf-8")
        if resume:
            self.write("resumed", {"step": begins_at, **origin()})
        else:
            late = {"begins_at": begins_at} if begins_at else {}
            self.write("header", header(config) | late)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
          OSError: if it cannot be written, for instance because the disk is full.
        """
        line = {"kind": kind, **{name: _plain(value) for name, value in values.items()}}
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # closing tries to write once more
                self._file.close()
            raise OSError(
                error.errno,
                f"the record {self._file.name!r} could not be written; the lines so "
                f"far are kept: {error.strerror}",
            ) from error

    def sync(self) -> None:
        """Waits until all lines are on the disk, before a checkpoint relies on them."""
        os.fsync(self._file.fileno())


def record_exists(path: Path) -> FileExistsError:
    """The error for a record that is not to be replaced."""
    return FileExistsError(
        f"the record {str(path)!r} exists; name another, or delete it"
    )


class SilentWriter(RecordWriter):
    """Writes nothing, for processes other than the one that keeps the record."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        pass

    def sync(self) -> None:
        pass


def header(config: RunConfig) -> Line:
    """All that is needed to repeat a run."""
    return {
        "config": _with_names(dataclasses.asdict(config)),
        "seed": config.seed,
        **origin(),
    }


def origin() -> Line:
    """Versions, device and commit of a run."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": _versions(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "commit": _commit(),
    }


def read_record(path: Path, *, interrupted: bool = False) -> RunRecord:
    """Reads a record.

    Args:
      path: path of the file.
      interrupted: whether an incomplete last line, which a killed run or a full disk
        leaves, is ignored.

    Raises:
      ValueError: if the file is not a record, or one of a version with other settings;
        the message names the file, and the line or the settings.
    """
    lines: dict[str, list[Line]] = {kind: [] for kind in KINDS}
    for number, text in enumerate(record_lines(path, interrupted), start=1):
        try:
            line = json.loads(text)
            lines[line.pop("kind")].append(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}:{number} is not a line of a record: a JSON object with "
                f"a kind out of {list(KINDS)} is needed"
            ) from error
    if len(lines["header"]) != 1:
        raise ValueError(f"{path} has {len(lines['header'])} headers; 1 is needed")
    first = lines["header"][0]
    fields = current_config(first["config"])
    known = {field.name for field in dataclasses.fields(RunConfig)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(
            f"{path} has the unknown settings {unknown} in its configuration; read it "
            "with the version of the code that wrote it, see its header"
        )
    return RunRecord(
        config=RunConfig(**fields),
        header=first,
        trials=lines["trial"],
        steps=lines["step"],
        evaluations=lines["evaluation"],
        summary=lines["summary"][-1] if lines["summary"] else None,
        stopped=lines["stopped"][-1]["reason"] if lines["stopped"] else None,
        resumed=tuple(lines["resumed"]),
    )


def record_lines(path: Path, interrupted: bool) -> list[str]:
    """The lines of a file; if ``interrupted``, without an incomplete last line."""
    with path.open(encoding="utf-8") as file:
        return [text for text in file if text.endswith("\n") or not interrupted]


def record_paths(folder: Path) -> list[Path]:
    """The records of a folder, by name."""
    return sorted(folder.glob("*.jsonl"))


def read_records(folder: Path, *, interrupted: bool = False) -> list[RunRecord]:
    """Reads all records of a folder, by name.

    Args:
      folder: folder of the records.
      interrupted: see `read_record`.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if a file is not a record; the message names file and line.
    """
    paths = record_paths(folder)
    if not paths:
        raise FileNotFoundError(f"there is no record (*.jsonl) in {str(folder)!r}")
    return [read_record(path, interrupted=interrupted) for path in paths]


def mean_over_steps(records: Sequence[RunRecord], name: str) -> float:
    """The mean of a metric over the steps of all records in which it is finite.

    NaN if no record has the metric.
    """
    values = [
        value
        for record in records
        if record.steps and name in record.steps[0]
        for value in record.series(name)
        if math.isfinite(value)
    ]
    return statistics.fmean(values) if values else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _with_names(value: Any) -> Any:
    """The same, with names for numbers that JSON lacks; `current_config` reads them."""
    if isinstance(value, Mapping):
        return {key: _with_names(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None  # run from a checkout that is not installed
    return found


@functools.cache
def _commit() -> str | None:
    """The commit of this checkout, followed by ``-dirty`` if files differ."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        answer = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
