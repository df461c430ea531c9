"""A process that runs solvers on problems, one after another.

It reads lines of JSON (solver, problem, budgets) and writes lines of JSON (records). A
separate process can be ended when a solver hangs.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import jax
import numpy as np

from experiments.classical import counting, peers, problems


def run_one(
    solver: str, problem: str, max_work: float, max_seconds: float
) -> dict[str, Any]:
    """Runs a solver on a problem and checks the returned point independently.

    Returns:
        A record: solver, problem and budgets, the cost, f and max|g| at the returned
        point, f at the start, whether it counts as solved, and the event that ended it.
    """
    objective, start = problems.load(problem)
    counter = counting.Counter(objective, max_work, max_seconds, start.size)
    counter.warm_up(start)
    start_value, _ = counter.uncounted(start)
    event, x = "returned", None
    begin = time.process_time()
    try:
        x = peers.solvers()[solver](counter, start)
    except Exception as error:
        out_of_budget = "OutOfBudget" in repr(error)
        event = "out of budget" if out_of_budget else f"{type(error).__name__}"
    seconds = time.process_time() - (counter.started or begin)
    value = grad_max = float("nan")
    if x is not None:
        value, grad = counter.uncounted(x)
        grad_max = float(np.max(np.abs(grad)))
    solved = grad_max <= peers.TOL * (1 + abs(value)) and value <= start_value
    return {
        "solver": solver,
        "problem": problem,
        "dimension": int(start.size),
        "values": counter.values,
        "gradients": counter.gradients,
        "work": counter.work,
        "seconds": seconds,
        "start_value": start_value,
        "value": value,
        "grad_max": grad_max,
        "solved": bool(solved),
        "event": event,
        "max_work": max_work,
        "max_seconds": max_seconds,
    }


def main() -> None:
    """Serves until the input ends."""
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    # The host callbacks of `counting` evaluate JAX functions themselves.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # Solvers may print; only answers go to the real standard output.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(run_one(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
