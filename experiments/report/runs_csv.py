"""The figures of every run as one small CSV file, written and read back."""

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config import RunConfig
from experiments.records.files import Line, RunRecord
from experiments.report.cells import Cell, steps_of

FIGURES = (
    "train_loss",
    "train_accuracy",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "gradient_equivalents",
    "seconds",
)
# Current columns that files of earlier reports lack.
ADDED = ("dataset", "model", "schedule", "epochs", "settings")
COLUMNS = (
    "optimizer",
    "batch_size",
    "options",
    "learning_rate",
    "l2",
    "seed",
    "steps",
    *FIGURES,
    *ADDED,
    "commit",
)


def write_runs(cells: Sequence[Cell], path: Path) -> None:
    """Writes one line per run; figures are empty where a run has none."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for cell in cells:
            writer.writerows(_line(record) for record in cell.records)


def read_runs(path: Path) -> list[RunRecord]:
    """Reads such a file as records without steps.

    Files of earlier reports hold no data set, no model, and no settings but those of
    the optimizer; the other settings of the configurations then mean nothing.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if a column is missing or a field is invalid; the message names file,
        line and field.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        found = reader.fieldnames or []
        needed = [name for name in COLUMNS if name not in ADDED or ADDED[0] in found]
        if missing := [name for name in needed if name not in found]:
            raise ValueError(
                f"{path} lacks the columns {missing}; a file such as the report's "
                "runs.csv is needed"
            )
        records = []
        for line in reader:
            try:
                if None in line or None in line.values():
                    raise ValueError(f"{len(found)} fields are needed")
                records.append(_record(line))
            except ValueError as error:
                raise ValueError(f"{path}:{reader.line_num}: {error}") from error
    if not records:
        raise ValueError(f"{path} holds no run")
    return records


def _line(record: RunRecord) -> dict[str, str | int]:
    config, summary = record.config, record.summary or {}
    return {
        "optimizer": config.optimizer,
        "batch_size": config.batch_size or "full",
        "options": _pairs(config.optimizer_options),
        "learning_rate": f"{config.learning_rate:.6g}",
        "l2": f"{config.l2:.6g}",
        "seed": config.seed,
        "steps": steps_of(record),
        **{name: _short(summary.get(name)) for name in FIGURES},
        "dataset": config.dataset,
        "model": config.model,
        "schedule": config.schedule,
        "epochs": config.epochs,
        "settings": _pairs(_other_settings(config)),
        "commit": " ".join(commit or "unknown" for commit in record.commits),
    }


def _other_settings(config: RunConfig) -> dict[str, Any]:
    """The settings without a column that differ from their defaults."""
    return {
        field.name: value
        for field in dataclasses.fields(RunConfig)
        if field.name not in (*COLUMNS, "optimizer_options")
        and (value := getattr(config, field.name)) != field.default
    }


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _short(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.6g}"


def _record(line: Mapping[str, str]) -> RunRecord:
    size = line["batch_size"]
    described = ADDED[0] in line
    others: dict[str, Any] = {}
    if described:
        others = _options(line["settings"])
        if unknown := sorted(set(others) - set(RunConfig.__dataclass_fields__)):
            raise ValueError(f"settings={line['settings']!r} has unknown {unknown}")
        others |= {name: line[name] for name in ("dataset", "model", "schedule")}
        others["epochs"] = int(_number(line, "epochs"))
    config = RunConfig(
        optimizer=line["optimizer"],
        optimizer_options=_options(line["options"]),
        learning_rate=_number(line, "learning_rate"),
        batch_size=None if size == "full" else int(_number(line, "batch_size")),
        l2=_number(line, "l2"),
        seed=int(_number(line, "seed")),
        **others,
    )
    summary: Line = {"step": int(_number(line, "steps"))}
    ended = line["gradient_equivalents"] != ""
    for name in FIGURES:
        if line[name] or not ended:
            summary[name] = _number(line, name) if line[name] else None
    commit, _, later = line["commit"].partition(" ")
    header: Line = {"commit": commit}
    if described:
        header["config"] = dataclasses.asdict(config)
    resumed = tuple({"commit": other} for other in later.split())
    return RunRecord(config, header, [], [], [], summary, None, resumed)


def _number(line: Mapping[str, str], name: str) -> float:
    try:
        return float(line[name])
    except ValueError as error:
        raise ValueError(f"{name}={line[name]!r} is not a number") from error


def _options(text: str) -> dict[str, Any]:
    # A space within brackets is part of a list.
    parts = re.split(r" (?![^\[]*\])", text)
    pairs = [part.partition("=") for part in parts if part]
    return {name: _option(value) for name, _, value in pairs}


def _option(text: str) -> Any:
    if text.startswith("["):
        return [_option(part) for part in text.strip("[]").split(", ") if part]
    if text in ("True", "False"):
        return text == "True"
    if text == "None":
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and "." not in text else number
