"""Table, performance profiles and data profiles from records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

Records = dict[str, dict[str, dict[str, Any]]]  # by solver, then by problem

VALUE_TOL = 1e-5  # of f0 - fbest, for "solved + f"
MAX_RATIO = 32.0  # right end of the performance profile


def best_values(records: Records) -> dict[str, float]:
    """The least f that any solver returned, by problem."""
    best: dict[str, float] = {}
    for by_problem in records.values():
        for name, record in by_problem.items():
            if np.isfinite(record["value"]):
                best[name] = min(best.get(name, np.inf), record["value"])
    return best


def is_solved_with_value(record: dict[str, Any], best: float) -> bool:
    """Whether the point also has a value next to the best one known."""
    gap = record["value"] - best
    return bool(record["solved"] and gap <= VALUE_TOL * (record["start_value"] - best))


def work_ratio(records: Records, solver: str, reference: str) -> tuple[float, int]:
    """Geometric mean of the ratio of work where both solved, and how often both did."""
    pairs = [
        (record["work"], records[reference][name]["work"])
        for name, record in records[solver].items()
        if record["solved"] and records[reference].get(name, {}).get("solved")
    ]
    if not pairs:
        return float("nan"), 0
    return float(np.exp(np.mean([np.log(a / b) for a, b in pairs]))), len(pairs)


def performance_profile(records: Records, ratios: np.ndarray) -> dict[str, np.ndarray]:
    """Fraction of the problems solved within a multiple of the least work.

    Dolan and Moré, "Benchmarking optimization software with performance profiles",
    Math. Program. 91, 2002.

    Args:
        records: of all solvers on the same problems.
        ratios: multiples tau >= 1.

    Returns:
        One curve a solver, shape of ``ratios``.
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
    """Fraction of the problems solved within budgets of simplex gradients, n + 1.

    Moré and Wild, "Benchmarking derivative-free optimization algorithms", SIAM J.
    Optim. 20, 2009; their unit is kept though our work counts gradients.

    Args:
        records: of all solvers.
        budgets: multiples of n + 1.

    Returns:
        One curve a solver, shape of ``budgets``.
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
    """The results as a Markdown table, most solved first."""
    best, areas = best_values(records), area(records)
    rows = []
    for solver, by in records.items():
        solved = sum(r["solved"] for r in by.values())
        with_value = sum(
            is_solved_with_value(r, best.get(n, np.nan)) for n, r in by.items()
        )
        ratio, common = work_ratio(records, solver, reference)
        per_evaluation = np.median(
            [1e6 * r["seconds"] / max(r["work"], 1) for r in by.values()]
        )
        rows.append(
            (
                solved,
                with_value,
                solver,
                len(by),
                ratio,
                common,
                areas[solver],
                per_evaluation,
            )
        )
    lines = [
        f"| solver | solved | solved+f | of | work against {reference} | on | "
        "area under profile | µs per gradient-equivalent |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for solved, value, solver, of, ratio, common, size, micro in sorted(
        rows, reverse=True
    ):
        lines.append(
            f"| {solver} | {solved} | {value} | {of} | {ratio:.2f} | {common} | "
            f"{size:.3f} | {micro:.0f} |"
        )
    return "\n".join(lines)


def plot(records: Records, path: Path) -> None:
    """Draws both profiles into one picture."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    ratios = 2.0 ** np.linspace(0, np.log2(MAX_RATIO), 301)
    budgets = 10.0 ** np.linspace(-2, 4, 301)
    styles = ["-", "--", "-.", ":"]
    by_performance = performance_profile(records, ratios)
    by_budget = data_profile(records, budgets)
    for k, solver in enumerate(records):
        style = {"linestyle": styles[k % 4], "color": f"C{k % 10}", "label": solver}
        left.step(ratios, by_performance[solver], where="post", **style)
        right.step(budgets, by_budget[solver], where="post", **style)
    left.set(
        xscale="log",
        xlabel="work, multiple of the least",
        ylabel="fraction of problems solved",
        title="performance profile (Dolan and Moré)",
    )
    left.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    right.set(
        xscale="log",
        xlabel="work, multiple of n + 1",
        title="data profile (Moré and Wild)",
    )
    left.set_ylim(0, 1)
    right.set_ylim(0, 1)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
