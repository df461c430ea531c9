"""Links in Markdown pages that lead out of the site.

Pages refer to other files of the repository by relative links, which work where the
repository is browsed. In the site such a link becomes its text and the path.
"""

import re
from typing import Any

from sphinx.application import Sphinx

# [text](../../folder/file.md#section), but not the image ![text](../folder/file.png)
OUTWARD = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+((?:experiments|tests)[^)#]*)[^)]*\)")
TOP = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+([A-Z]+(?:\.md|\.cff)?)[^)]*\)")


def spell_out(text: str) -> str:
    """Replaces links out of the site by their text and the path.

    >>> spell_out("see [the table](../experiments/README.md#cost).")
    'see the table (`experiments/README.md`).'
    """
    for pattern in (OUTWARD, TOP):
        text = pattern.sub(r"\1 (`\2`)", text)
    return text


def _on_source_read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = spell_out(source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension."""
    app.connect("source-read", _on_source_read)
    return {"parallel_read_safe": True}
