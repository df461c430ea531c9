"""Every Python block of README.md and docs/ runs, one namespace per document."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document):
    return BLOCK.findall(document.read_text())


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if blocks(d)], ids=lambda path: path.name
)
def test_python_blocks_run(document, standard_promotion):
    namespace = {"__name__": "document"}
    for block in blocks(document):
        exec(compile(block, str(document), "exec"), namespace)
    if document.name == "README.md":
        # What the two examples say: the fit is found, and training descends.
        expected = {"a": 2.0, "b": 1.3, "c": 0.5}
        for name, value in namespace["result"].x.items():
            # Rounding of the residuals in float32 moves the minimizer by some 1e-6.
            assert abs(value - expected[name]) < 1e-4
        start = jax.tree.map(lambda x: x * 0, namespace["params"])
        assert namespace["value"] < 0.1 * namespace["loss"](start)
