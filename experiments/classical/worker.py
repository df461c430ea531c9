"""A process that runs solvers on problems, one after another.

It reads lines of JSON (solver, problem, precision, budgets) and writes lines of JSON:
first its versions, device and commit, which show that it is ready, then records. A
separate process can be ended when a solver hangs.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.classical import counting, peers, problems, verdict
from experiments.records.files import origin

# Gradients without a lower value after which a run in float32 ends.
PATIENCE = 300.0


class _Problem(NamedTuple):
    """The problem last run, so that the solvers after the first compile nothing."""

    name: str
    objective: Any
    start: np.ndarray
    judge: verdict.Judge


_last: list[_Problem] = []


def _load(name: str) -> _Problem:
    if not _last or _last[0].name != name:
        with jax.enable_x64(True):
            objective, start = problems.load(name)
        _last[:] = [_Problem(name, objective, start, verdict.Judge(objective))]
    return _last[0]


def run_one(
    solver: str,
    problem: str,
    max_work: float,
    max_seconds: float,
    precision: str = "float64",
) -> dict[str, Any]:
    """Runs a solver on a problem and checks the returned point independently.

    Returns:
        A record: solver, problem and budgets, the cost, f and max|g| at the returned
        point, f at the start, whether it counts as solved, and the event that ended it.
        In float32 the point is the lowest one, ``work`` that of the first solution and
        ``total_work`` that of the whole run.
    """
    single = precision == "float32"
    # Not a context: the counter is called on threads of the compiled solvers.
    jax.config.update("jax_enable_x64", not single)
    loaded = _load(problem)
    start = loaded.start
    counter = counting.Counter(
        loaded.objective,
        max_work,
        max_seconds,
        start.size,
        dtype=np.float32 if single else np.float64,
        patience=PATIENCE if single else math.inf,
        keeps_path=single,
    )
    counter.warm_up(start)
    event, x = "returned", None
    begin = time.process_time()
    try:
        x = peers.solvers(0.0 if single else peers.TOL)[solver](counter, start)
    except Exception as error:
        out_of_budget = "OutOfBudget" in repr(error)
        event = "out of budget" if out_of_budget else f"{type(error).__name__}"
    seconds = time.process_time() - (counter.started or begin)
    record = {
        "solver": solver,
        "problem": problem,
        "precision": precision,
        "dimension": int(start.size),
        "values": counter.values,
        "gradients": counter.gradients,
        "work": counter.work,
        "seconds": seconds,
        "event": event,
        "max_work": max_work,
        "max_seconds": max_seconds,
    }
    if single:
        return record | _checked_single(loaded, counter)
    return record | _checked(counter, start, x)


def _checked(
    counter: counting.Counter, start: np.ndarray, x: np.ndarray | None
) -> dict[str, Any]:
    start_value, _ = counter.uncounted(start)
    value = grad_max = math.nan
    if x is not None:
        value, grad = counter.uncounted(x)
        grad_max = float(np.max(np.abs(grad)))
    solved = grad_max <= peers.TOL * (1 + abs(value)) and value <= start_value
    return {
        "start_value": start_value,
        "value": value,
        "grad_max": grad_max,
        "solved": bool(solved),
    }


def _checked_single(loaded: _Problem, counter: counting.Counter) -> dict[str, Any]:
    start_value = loaded.judge.value(np.asarray(loaded.start, np.float32))
    path = counter.path or [(counter.work, np.asarray(loaded.start, np.float32))]
    found = verdict.judge(loaded.judge, path, start_value)
    return found._asdict() | {
        "start_value": start_value,
        "total_work": counter.work,
        "says_success": counter.says_success,
    }


def main() -> None:
    """Serves until the input ends."""
    warnings.simplefilter("ignore")
    # The host callbacks of `counting` evaluate JAX functions themselves.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # Solvers may print; only answers go to the real standard output.
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(origin()), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run_one(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
