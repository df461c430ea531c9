"""The table, performance profiles and data profiles of records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report import style
from experiments.report.tables import Column, make_table

Records = dict[str, dict[str, dict[str, Any]]]  # by solver, then by problem

VALUE_TOL = 1e-5  # of f0 - fbest, for "solved + f"
MAX_RATIO = 32.0  # right end of the performance profile
COLORS = {
    "nlcg_optax": "#0072b2",
    "CG_DESCENT": "#d55e00",
    "optax": "#009e73",
    "SciPy": "#555555",
    "optimistix": "#cc79a7",
    "jaxopt": "#e69f00",
}
OTHER_COLOR = "#8c6bb1"


def best_values(records: Records) -> dict[str, float]:
    """The least f that any solver returned, by problem."""
    best: dict[str, float] = {}
    for by_problem in records.values():
        for name, record in by_problem.items():
            if np.isfinite(record["value"]):
                best[name] = min(best.get(name, np.inf), record["value"])
    return best


def is_solved_with_value(record: dict[str, Any], best: float) -> bool:
    """Whether a solved point also has nearly the least value known."""
    gap = record["value"] - best
    return bool(record["solved"] and gap <= VALUE_TOL * (record["start_value"] - best))


def work_ratio(records: Records, solver: str, reference: str) -> tuple[float, int]:
    """Geometric mean of the work ratio where both solved, and how many both solved."""
    pairs = [
        (record["work"], records[reference][name]["work"])
        for name, record in records[solver].items()
        if record["solved"] and records[reference].get(name, {}).get("solved")
    ]
    if not pairs:
        return float("nan"), 0
    return float(np.exp(np.mean([np.log(a / b) for a, b in pairs]))), len(pairs)


def performance_profile(records: Records, ratios: np.ndarray) -> dict[str, np.ndarray]:
    """Share of the problems solved within a multiple of the least work.

    Dolan and Moré, "Benchmarking optimization software with performance profiles",
    Math. Program. 91, 2002.

    Args:
        records: records of all solvers on the same problems.
        ratios: multiples tau >= 1.

    Returns:
        One curve per solver, shape of ``ratios``.
    """
    names = sorted(set.intersection(*(set(by) for by in records.values())))
    work = {
        solver: np.array([by[n]["work"] if by[n]["solved"] else np.inf for n in names])
        for solver, by in records.items()
    }
    least = np.min(list(work.values()), axis=0)
    with np.errstate(invalid="ignore"):
        return {
            solver: np.array([np.mean(w / least <= tau) for tau in ratios])
            for solver, w in work.items()
        }


def data_profile(records: Records, budgets: np.ndarray) -> dict[str, np.ndarray]:
    """Share of the problems solved within a budget of simplex gradients, n + 1.

    Moré and Wild, "Benchmarking derivative-free optimization algorithms", SIAM J.
    Optim. 20, 2009; their unit is kept, although work counts gradients here.

    Args:
        records: records of all solvers.
        budgets: multiples of n + 1.

    Returns:
        One curve per solver, shape of ``budgets``.
    """
    return {
        solver: np.array(
            [
                np.mean(
                    [
                        r["solved"] and r["work"] <= budget * (r["dimension"] + 1)
                        for r in by.values()
                    ]
                )
                for budget in budgets
            ]
        )
        for solver, by in records.items()
    }


def area(records: Records) -> dict[str, float]:
    """Area under the performance profile over log tau, 1 at most."""
    logs = np.linspace(0, np.log2(MAX_RATIO), 501)
    curves = performance_profile(records, 2.0**logs)
    return {
        solver: float(np.trapezoid(curve, logs) / logs[-1])
        for solver, curve in curves.items()
    }


def table(records: Records, reference: str) -> str:
    """The results as a Markdown table, most solved first.

    Args:
        records: records of all solvers.
        reference: the solver that work is compared with.
    """
    best, areas = best_values(records), area(records)
    solved = {s: sum(r["solved"] for r in by.values()) for s, by in records.items()}
    with_value = {
        solver: sum(
            is_solved_with_value(record, best.get(name, np.nan))
            for name, record in by.items()
        )
        for solver, by in records.items()
    }
    order = sorted(records, key=lambda s: (-solved[s], -with_value[s], s))
    ratios = {solver: work_ratio(records, solver, reference) for solver in order}
    micros = {
        solver: np.median([_micros_per_work(r) for r in by.values()])
        for solver, by in records.items()
    }
    columns = {
        "solver": order,
        "solved": [str(solved[s]) for s in order],
        "solved+f": [str(with_value[s]) for s in order],
        "problems": [str(len(records[s])) for s in order],
        f"work / {reference}": [f"{ratios[s][0]:.2f}" for s in order],
        "both solved": [str(ratios[s][1]) for s in order],
        "area under profile": [f"{areas[s]:.3f}" for s in order],
        "µs per gradient-equivalent": [f"{micros[s]:.0f}" for s in order],
    }
    if any("says_success" in r for by in records.values() for r in by.values()):
        columns |= _own_verdicts(records, order)
    found = make_table([Column(head, head, rows) for head, rows in columns.items()])
    return found.markdown()


def _micros_per_work(record: dict[str, Any]) -> float:
    """Time per gradient-equivalent of the whole run, which has both in float32, too."""
    return 1e6 * record["seconds"] / max(record.get("total_work", record["work"]), 1)


def _own_verdicts(records: Records, order: list[str]) -> dict[str, list[str]]:
    """Whether solvers report convergence in float32, and the cost of finding it."""
    says, wrong, extra = [], [], []
    for solver in order:
        rows = [r for r in records[solver].values() if r.get("says_success")]
        has_verdict = any(
            r.get("says_success") is not None for r in records[solver].values()
        )
        says.append(str(len(rows)) if has_verdict else "–")
        wrong.append(str(sum(not r["solved"] for r in rows)) if has_verdict else "–")
        logs = [np.log(r["total_work"] / r["work"]) for r in rows if r["solved"]]
        extra.append(f"{np.exp(np.mean(logs)):.2f}" if logs else "–")
    return {
        "says converged": says,
        "of these not solved": wrong,
        "work to its end / work": extra,
    }


def looks(solvers: Iterable[str]) -> dict[str, style.Look]:
    """How each solver is drawn: in the color of its package, with its own dashes."""
    return style.looks_of(
        {solver: COLORS.get(solver.split()[0], OTHER_COLOR) for solver in solvers}
    )


def draw(records: Records, path: Path) -> None:
    """Draws both profiles into one picture."""
    ratios = 2.0 ** np.linspace(0, np.log2(MAX_RATIO), 301)
    budgets = 10.0 ** np.linspace(-2, 4, 301)
    by_performance = performance_profile(records, ratios)
    by_budget = data_profile(records, budgets)
    look_of = looks(records)
    with style.styled():
        figure, rows = style.new_panels(1, 2, 4.2, sharey=True)
        left, right = rows[0]
        for solver in records:
            line = {"where": "post", "label": solver, **look_of[solver].line()}
            left.step(ratios, by_performance[solver], **line)
            right.step(budgets, by_budget[solver], **line)
        left.set(
            title="Performance profile (Dolan and Moré)",
            xlabel="work / least work of any solver",
            ylabel="share of the problems solved",
            xlim=(1, MAX_RATIO),
            ylim=(0, 1.01),
        )
        right.set(
            title="Data profile (Moré and Wild)",
            xlabel="work / (n + 1)",
            xlim=(budgets[0], budgets[-1]),
        )
        style.set_log_scale(left, "x", [1, 2, 4, 8, 16, 32])
        style.set_log_scale(right, "x")
        style.add_legend(figure, [left])
        style.save(figure, path)
