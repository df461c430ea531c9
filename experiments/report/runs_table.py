"""The figures of every run as one small CSV file."""

import csv
from collections.abc import Sequence
from pathlib import Path

from experiments.records.files import RunRecord
from experiments.report.cells import Cell

FIGURES = (
    "train_loss",
    "train_accuracy",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "gradient_equivalents",
    "seconds",
)


def write_runs(cells: Sequence[Cell], path: Path) -> None:
    """Writes a line for each run; figures are empty where a run has none."""
    lines = [_line(record) for cell in cells for record in cell.records]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _line(record: RunRecord) -> dict[str, str | int]:
    config, summary = record.config, record.summary or {}
    options = config.optimizer_options.items()
    return {
        "optimizer": config.optimizer,
        "batch_size": config.batch_size or "full",
        "options": " ".join(f"{name}={value}" for name, value in options),
        "learning_rate": f"{config.learning_rate:.6g}",
        "l2": f"{config.l2:.6g}",
        "seed": config.seed,
        "steps": len(record.steps),
        **{name: _short(summary.get(name)) for name in FIGURES},
        "commit": record.header["commit"] or "",
    }


def _short(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.6g}"
