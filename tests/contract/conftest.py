"""Keeps the default suite short: the other cases of the contract are marked slow."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent

# One case for each form (stochastic, with and without the loss, line search) and kind
# of diagonal preconditioner. `make test-slow`, and CI, run all.
FAST = {"pr+", "rms", "secant_rate", "secant_hvp", "paper_fr_step", "search"}


def pytest_collection_modifyitems(items):
    # Not before: the cases run JAX, whose devices are set in tests/conftest.py.
    from tests.contract.cases import BY_NAME

    for item in items:
        if HERE not in item.path.parents or not hasattr(item, "callspec"):
            continue
        parameters = item.callspec.params
        case = parameters.get("case")
        name = case.name if case is not None else parameters.get("name")
        if name in BY_NAME and name not in FAST:
            item.add_marker(pytest.mark.slow)
