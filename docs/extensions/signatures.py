"""Signatures of functions as their source has them, so that types stay readable.

Evaluated, ``optax.ScalarOrSchedule`` would be four lines of unions.
"""

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # tests of the functions below need no Sphinx
    from sphinx.application import Sphinx


def as_written(function: Any) -> tuple[str, str | None] | None:
    """Returns arguments and result of a function in the words of its source."""
    function = inspect.unwrap(function)
    if not inspect.isfunction(function):
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    result = None if definition.returns is None else ast.unparse(definition.returns)
    return f"({ast.unparse(definition.args)})", result


def _on_signature(
    app: "Sphinx",
    what: str,
    name: str,
    thing: Any,
    options: Any,
    signature: str | None,
    return_annotation: str | None,
) -> tuple[str, str | None] | None:
    return as_written(thing) if what == "function" else None


def setup(app: "Sphinx") -> dict[str, Any]:
    """Registers the extension."""
    app.connect("autodoc-process-signature", _on_signature)
    return {"parallel_read_safe": True}
