"""Tables and curves of the study, from its records."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich.console

from experiments.records.files import RunRecord, mean_over_steps, read_record
from experiments.report.cells import Cell
from experiments.report.curves import draw
from experiments.studies.fewstep.methods import (
    BASELINES,
    DRAWN,
    DRAWN_BASELINES,
    TUNING_FREE,
)
from experiments.studies.fewstep.plan import (
    Study,
    Task,
    ablation_sweep,
    is_ablated,
    sweep_of,
)
from experiments.tuning.sweep import Sweep, outcome
from experiments.tuning.trials import best_number

WINDOW = 5  # steps of the running mean in which a loss is reached
HEADINGS = (
    "method",
    "learning rate",
    "training loss",
    "validation accuracy %",
    "steps to objective",
    "of best baseline",
    "gradient-equivalents",
    "seconds",
    "mean β",
)
BASELINE_NAMES = {method.optimizer for method in BASELINES}


def write_report(study: Study, out: Path, console: rich.console.Console) -> None:
    """Writes ``report.md`` and, for every task, ``curves_TASK.png``.

    Raises:
      ValueError: if there is no record of the study.
    """
    parts = []
    for task in study.tasks:
        sections: list[str] = []
        shown: list[Cell] = []
        for part in task.parts:
            cells = _cells(study, task, part, out / task.name / f"part{part}")
            if not cells:
                continue
            records = cells[0].records
            size = records[0].config.batch_size or "full batch"
            sections.append(
                f"\n### {task.name}: batch {size}, {len(records[0].steps)} steps\n\n"
                + table(cells)
            )
            shown += cells
        if sections:
            parts.append(_provenance(task, shown))
            drawn = [cell for cell in _plain(shown) if _is_drawn(cell)]
            if drawn:
                draw(drawn, out / f"curves_{task.name}.png")
                parts.append(f"\n![Curves](curves_{task.name}.png)\n")
            parts += sections
    if not parts:
        raise ValueError(f"out={str(out)!r} holds no record of this study")
    (out / "report.md").write_text("".join(parts), encoding="utf-8")
    console.print(f"Tables and curves in {out}.")


def _cells(study: Study, task: Task, part: int, folder: Path) -> list[Cell]:
    """The final runs of each method; its best trial if there are none yet."""
    sweep = sweep_of(study, task, part, task.candidates)
    found = _cells_of(sweep, folder)
    if is_ablated(task) and (folder / "finals").exists():
        with contextlib.suppress(FileNotFoundError):  # the ablated runs are to come
            ablation = ablation_sweep(study, task, part, folder)
            found += [] if ablation is None else _cells_of(ablation, folder)
    return found


def _cells_of(sweep: Sweep, folder: Path) -> list[Cell]:
    cells = []
    for method in sweep.methods:
        finals = _records(folder / "finals", f"{method.stem}-seed*.jsonl")
        trials = _records(folder / "trials", f"{method.stem}-trial*.jsonl")
        best = [r for r in trials if r.summary is not None]
        if finals:
            cells.append(Cell(tuple(finals)))
        elif best:
            number = best_number([outcome(r) for r in best], sweep.criterion)
            cells.append(Cell((best[number],)))
    return cells


def _records(folder: Path, pattern: str) -> list[RunRecord]:
    found = [
        read_record(path, interrupted=True) for path in sorted(folder.glob(pattern))
    ]
    return [r for r in found if r.summary is not None or r.stopped is not None]


def _is_drawn(cell: Cell) -> bool:
    config = cell.config
    choice = (config.optimizer, config.optimizer_options)
    return config.optimizer in DRAWN_BASELINES or choice in [c.choice for c in DRAWN]


def table(cells: Sequence[Cell]) -> str:
    """A Markdown table, the least training loss first."""
    best = best_baseline(cells)
    target = math.nan if best is None else smoothed_losses(best)[-1]
    peer = None if best is None else steps_to(best, target)
    lines = ["| " + " | ".join(HEADINGS) + " |"]
    lines.append("|---|" + "---:|" * (len(HEADINGS) - 1))
    for cell in sorted(cells, key=lambda cell: cell.median("train_loss")):
        steps = steps_to(cell, target)
        ratio = None if steps is None or peer is None else steps / peer
        cost = _cost(cell, "gradient_equivalents", steps)
        row = (
            (f"**{cell.label}**" if cell is best else cell.label)
            + ("" if len(cell.records) > 1 else " (one trial)"),
            _rate(cell),
            _range(cell, "train_loss", "{:.4f}", 1.0),
            _range(cell, "validation_accuracy", "{:.1f}", 100.0),
            "–" if steps is None else str(steps),
            "–" if ratio is None else f"{ratio:.2f}",
            "–" if cost is None else f"{cost:.0f}",
            _figure(cell.median("seconds"), "{:.1f}"),
            _figure(mean_over_steps(cell.records, "beta"), "{:.2f}"),
        )
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def best_baseline(cells: Sequence[Cell]) -> Cell | None:
    """The baseline whose objective is least at the end, None where there is none."""
    baselines = [cell for cell in cells if cell.config.optimizer in BASELINE_NAMES]
    ends = [(smoothed_losses(cell)[-1], cell) for cell in baselines]
    ends = [(loss, cell) for loss, cell in ends if math.isfinite(loss)]
    return min(ends, key=lambda pair: pair[0])[1] if ends else None


def smoothed_losses(cell: Cell) -> np.ndarray:
    """Objectives of the batches: the median over seeds, then the mean of five steps.

    The objective is what is minimised: the loss of the augmented batch with its L2
    term, unlike the training loss of the table, which is without either.

    Entry t is of steps t - 4 to t; a run that diverged counts as infinite.
    """
    length = max(len(record.steps) for record in cell.records)
    losses = np.full([len(cell.records), length], np.inf)
    for row, record in zip(losses, cell.records, strict=True):
        found = np.asarray(record.series("loss"))
        row[: len(found)] = np.where(np.isfinite(found), found, np.inf)
    middle = np.median(losses, axis=0)
    first = np.full(WINDOW - 1, np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(middle, WINDOW)
    return np.concatenate([first, windows.mean(axis=1)])


def steps_to(cell: Cell, target: float) -> int | None:
    """The first step after which the smoothed loss is at the target, if it ever is."""
    reached = np.flatnonzero(smoothed_losses(cell) <= target)
    return int(reached[0]) + 1 if reached.size else None


def _cost(cell: Cell, name: str, steps: int | None) -> float | None:
    return None if steps is None else cell.records[0].series(name)[steps - 1]


def _rate(cell: Cell) -> str:
    config = cell.config
    choice = config.optimizer, config.optimizer_options
    untuned = choice in [candidate.choice for candidate in TUNING_FREE]
    return "none" if untuned else f"{config.learning_rate:.3g}"


def _range(cell: Cell, name: str, form: str, factor: float) -> str:
    finite = [factor * v for v in cell.values(name) if math.isfinite(v)]
    if not finite:
        return "–"
    lost = len(cell.records) - len(finite)
    middle = _figure(factor * cell.median(name), form)
    text = f"{middle} [{form.format(min(finite))}, {form.format(max(finite))}]"
    return f"{text} ({lost} diverged)" if lost else text


def _figure(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "–"


def _plain(cells: Sequence[Cell]) -> list[Cell]:
    """Cells without those of which no seed took a step."""
    return [cell for cell in cells if all(record.steps for record in cell.records)]


def _provenance(task: Task, cells: Sequence[Cell]) -> str:
    records: list[RunRecord] = [record for cell in cells for record in cell.records]
    header = records[0].header
    commits = sorted({str(record.header["commit"]) for record in records})
    seeds = sorted({record.config.seed for record in records})
    settings = ", ".join(f"{name} {value}" for name, value in task.settings.items())
    return (
        f"\n## {task.name}\n\n{settings}; final seeds {', '.join(map(str, seeds))}; "
        f"{header['device']['kind']}; commit {', '.join(commits)}.\n"
    )
