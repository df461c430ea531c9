"""The report: tables of false rejects and of costs, and pictures of the trade-off."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import optimizers
from experiments.keyword_spotting.evaluation import ALARMS_PER_HOUR
from experiments.keyword_spotting.plan import (
    BASELINES,
    MINIMIZE,
    NLCG,
    Plan,
    read_line,
)
from experiments.records.files import Line
from experiments.report.style import add_legend, looks_of, new_panels, save, styled
from experiments.report.tables import median_and_range

REFERENCE = "cross_entropy"
TARGET = 1  # the column of `ALARMS_PER_HOUR` by which methods are compared
FRAME = 10  # milliseconds from a frame to the next
LABELS = {
    REFERENCE: "cross-entropy",
    "longer_cross_entropy": "cross-entropy, twice as long",
    MINIMIZE: "minimize",
}
MISSING = "–"


def write_report(plan: Plan, out: Path) -> str:
    """Writes ``report.md``, ``runs.csv`` and ``trade_off.png`` from the records.

    Returns:
      The text of the report.
    """
    groups = records_of(plan)
    text = "\n".join(
        [
            f"# Spotting {plan.config.keyword!r}",
            "",
            rejects_table(groups),
            cost_table(groups),
        ]
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text, encoding="utf-8")
    write_runs(groups, out / "runs.csv")
    if REFERENCE in groups:
        draw(groups, out / "trade_off.png")
    return text


def records_of(plan: Plan) -> dict[str, list[Line]]:
    """The records of each method and variant that reached their end, over seeds."""
    paths = {
        REFERENCE: [plan.cross_entropy(REFERENCE, seed) for seed in plan.seeds],
        "longer_cross_entropy": [
            plan.cross_entropy("longer_cross_entropy", seed) for seed in plan.seeds
        ],
        **{m: [plan.final(m, seed) for seed in plan.seeds] for m in plan.methods},
        **{v: [plan.ablation(v, seed) for seed in plan.seeds] for v in plan.variants},
    }
    found = {
        name: [
            line
            for path in group
            if path.exists() and "stopped" not in (line := read_line(path))
        ]
        for name, group in paths.items()
    }
    return {name: lines for name, lines in found.items() if lines}


def label_of(name: str) -> str:
    """The label of a method or a variant."""
    if name in BASELINES or name in NLCG:
        return optimizers.label_of(name)
    return LABELS.get(name, name)


def rejects_table(groups: dict[str, list[Line]]) -> str:
    """False rejects of test speakers: medians over seeds, and their ranges.

    The band is from the lowest to the highest end of the seeds' 95 % bands over
    speakers. The reduction is relative to cross-entropy with the same seed.
    """
    before = {
        line["seed"]: line["test"]["rejects"][TARGET]
        for line in groups.get(REFERENCE, [])
    }
    headings = [f"FRR % at {alarms} FA/h" for alarms in ALARMS_PER_HOUR]
    lines = [
        f"| trained by | seeds | {' | '.join(headings)} | band over speakers at "
        f"{ALARMS_PER_HOUR[TARGET]} FA/h | fewer than cross-entropy % | IOU | "
        "shift of ends, ms | frame accuracy % |",
        "|---|" + "---:|" * (len(headings) + 6),
    ]
    for name, group in groups.items():
        tests = [line["test"] for line in group]
        fields = [
            median_and_range([100 * test["rejects"][column] for test in tests])
            for column in range(len(ALARMS_PER_HOUR))
        ]
        bands = np.array([test["bands"][TARGET] for test in tests]) * 100
        shifts = [
            FRAME * test["shift_frames"]
            for test in tests
            if test["shift_frames"] is not None
        ]
        fewer = [
            100 * (1 - line["test"]["rejects"][TARGET] / before[line["seed"]])
            for line in group
            if before.get(line["seed"])
        ]
        fields += [
            f"{bands[:, 0].min():.1f} to {bands[:, 1].max():.1f}",
            median_and_range(fewer) if fewer and name != REFERENCE else MISSING,
            f"{statistics.median(test['iou'] for test in tests):.2f}",
            f"{statistics.median(shifts):.0f}" if shifts else MISSING,
            f"{100 * statistics.median(x['frame_accuracy'] for x in group):.1f}",
        ]
        lines.append(f"| {label_of(name)} | {len(group)} | {' | '.join(fields)} |")
    return "\n".join(lines) + "\n"


def write_runs(groups: dict[str, list[Line]], path: Path) -> None:
    """Writes a line of figures for each final run."""
    columns = [f"rejects_at_{alarms}_per_hour" for alarms in ALARMS_PER_HOUR]
    rows = [
        [
            label_of(name),
            line["seed"],
            line["config"].get("learning_rate", ""),
            *(f"{rate:.4f}" for rate in line["validation"]["rejects"]),
            *(f"{rate:.4f}" for rate in line["test"]["rejects"]),
            *(f"{bound:.4f}" for bound in line["test"]["bands"][TARGET]),
            line["commit"],
        ]
        for name, group in groups.items()
        for line in group
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "trained_by",
                "seed",
                "learning_rate",
                *(f"validation_{column}" for column in columns),
                *(f"test_{column}" for column in columns),
                *(f"band_{end}_{columns[TARGET]}" for end in ("from", "to")),
                "commit",
            ]
        )
        writer.writerows(rows)


def cost_table(groups: dict[str, list[Line]]) -> str:
    """Gradient-equivalents to the best baseline's end metric and loss.

    The end metric is the false reject rate of validation speakers at the second target,
    as the mean over seeds at each report; the best baseline has the lowest at its end.
    The loss of an optimizer is that of the weights before its last step, that of
    `minimize` of the weights after it.
    """
    methods = [m for m in (*BASELINES, *NLCG, MINIMIZE) if m in groups]
    baselines = [m for m in methods if m in BASELINES]
    if not baselines:
        return ""
    targets = {
        what: min(series_of(groups[m], what)[1][-1] for m in baselines)
        for what in ("validation", "loss")
    }
    lines = [
        "| optimizer | final loss | final validation FRR % at "
        f"{ALARMS_PER_HOUR[TARGET]} FA/h | gradient-equivalents to FRR "
        f"{100 * targets['validation']:.1f} % | to loss {targets['loss']:.4f} |",
        "|---|---:|---:|---:|---:|",
    ]
    for method in methods:
        ends = {w: series_of(groups[method], w)[1][-1] for w in targets}
        costs = [
            MISSING if cost is None else f"{cost:.0f}"
            for cost in (cost_to(groups[method], w, t) for w, t in targets.items())
        ]
        lines.append(
            f"| {label_of(method)} | {ends['loss']:.4f} | "
            f"{100 * ends['validation']:.1f} | {' | '.join(costs)} |"
        )
    return "\n".join(lines) + "\n"


def series_of(group: Sequence[Line], what: str) -> tuple[list[float], list[float]]:
    """Costs of the reports, and ``loss`` or ``validation``: means over seeds."""
    reports = [line["reports"] for line in group]
    costs = [
        statistics.fmean(report["gradient_equivalents"] for report in at)
        for at in zip(*reports, strict=True)
    ]
    values = [
        [r[what][TARGET] if what == "validation" else r[what] for r in at]
        for at in zip(*reports, strict=True)
    ]
    return costs, [statistics.fmean(at) for at in values]


def cost_to(group: Sequence[Line], what: str, target: float) -> float | None:
    """Gradient-equivalents at the first report at or below a target, or None."""
    for cost, value in zip(*series_of(group, what), strict=True):
        if value <= target:
            return cost
    return None


def draw(groups: dict[str, list[Line]], path: Path) -> None:
    """False rejects against false alarms on test speakers, and against the cost."""
    methods = [m for m in (*BASELINES, *NLCG, MINIMIZE) if m in groups]
    best = {
        min(kind, key=lambda m: statistics.median(_target(groups[m])))
        for kind in (
            [m for m in methods if m in BASELINES],
            [m for m in methods if m not in BASELINES],
        )
        if kind
    }
    shown = [REFERENCE, *(m for m in methods if m in best)]
    colors = {label_of(REFERENCE): "#777777", label_of(MINIMIZE): "#0072b2"}
    for m in methods:
        if m != MINIMIZE:
            colors[label_of(m)] = optimizers.color_of(m)
    looks = looks_of(colors)
    with styled():
        figure, ((left, right),) = new_panels(1, 2, height=3.0)
        alarms = np.linspace(0.5, ALARMS_PER_HOUR[-1], 60)
        for name in shown:
            label = label_of(name)
            found = 100 * np.array(
                [rejects_along(line["test"], alarms) for line in groups[name]]
            )
            left.plot(
                alarms, np.median(found, axis=0), **looks[label].line(label=label)
            )
            left.fill_between(
                alarms,
                found.min(axis=0),
                found.max(axis=0),
                color=looks[label].color,
                alpha=0.2,
                linewidth=0,
            )
        left.set_xlabel("false alarms per hour, test speakers")
        left.set_ylabel("false rejects, %")
        for method in methods:
            label = label_of(method)
            costs, values = series_of(groups[method], "validation")
            right.plot(costs, 100 * np.array(values), **looks[label].line(label=label))
        right.set_xlabel("gradient-equivalents")
        right.set_ylabel(
            f"false rejects at {ALARMS_PER_HOUR[TARGET]} FA/h, validation, %"
        )
        add_legend(figure, [left, right])
        save(figure, path)


def rejects_along(figures: Line, alarms: np.ndarray) -> list[float]:
    """The fewest on the curve within each number of false alarms per hour."""
    costs = np.array(figures["curve_alarms"])
    rejected = np.array(figures["curve_rejects"])
    return [float(rejected[costs <= most].min()) for most in alarms]


def _target(group: Sequence[Line]) -> list[float]:
    return [line["test"]["rejects"][TARGET] for line in group]
