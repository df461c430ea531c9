"""Tables and curves of the study, from its records."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import rich.console

from experiments.records.files import RunRecord, read_record
from experiments.report.cells import Cell
from experiments.report.figures import draw_beta, draw_progress, has_beta, has_steps
from experiments.report.steps_to import steps_table
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

BASELINE_NAMES = {method.optimizer for method in BASELINES}


def write_report(study: Study, out: Path, console: rich.console.Console) -> None:
    """Writes ``report.md``, and per task ``loss_TASK.png`` and ``beta_TASK.png``.

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
            untuned = [cell for cell in cells if _is_untuned(cell)]
            records = cells[0].records
            size = records[0].config.batch_size or "full batch"
            sections.append(
                f"\n### {task.name}: batch {size}, {len(records[0].steps)} steps\n\n"
                + steps_table(cells, BASELINE_NAMES, untuned).markdown()
            )
            shown += cells
        if sections:
            parts.append(_provenance(task, shown))
            drawn = [cell for cell in shown if has_steps(cell) and _is_drawn(cell)]
            if drawn:
                parts += _pictures(task, drawn, out)
            parts += sections
    if not parts:
        raise ValueError(f"out={str(out)!r} holds no record of this study")
    (out / "report.md").write_text("".join(parts), encoding="utf-8")
    console.print(f"Tables and curves in {out}.")


def _pictures(task: Task, drawn: Sequence[Cell], out: Path) -> list[str]:
    """Draws the losses, and β where there is one; returns the lines that show them."""
    names = [f"loss_{task.name}.png"]
    draw_progress(drawn, "loss", out / names[0])
    if any(has_beta(cell) for cell in drawn):
        names.append(f"beta_{task.name}.png")
        draw_beta(drawn, out / names[1])
    return [f"\n![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in names]


def _cells(study: Study, task: Task, part: int, folder: Path) -> list[Cell]:
    """The final runs of each method; its best trial if there are none yet."""
    sweep = sweep_of(study, task, part, task.candidates)
    found = _cells_of(sweep, folder)
    if is_ablated(task) and (folder / "finals").exists():
        with contextlib.suppress(FileNotFoundError):  # ablated runs are still to come
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


def _is_untuned(cell: Cell) -> bool:
    config = cell.config
    choice = config.optimizer, config.optimizer_options
    return choice in [candidate.choice for candidate in TUNING_FREE]


def _provenance(task: Task, cells: Sequence[Cell]) -> str:
    records: list[RunRecord] = [record for cell in cells for record in cell.records]
    header = records[0].header
    commits = sorted({commit or "unknown" for r in records for commit in r.commits})
    seeds = sorted({record.config.seed for record in records})
    settings = ", ".join(f"{name} {value}" for name, value in task.settings.items())
    return (
        f"\n## {task.name}\n\n{settings}; final seeds {', '.join(map(str, seeds))}; "
        f"{header['device']['kind']}; commit {', '.join(commits)}.\n"
    )
