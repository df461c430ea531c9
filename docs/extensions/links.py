"""Links in Markdown pages that lead out of the site.

Pages refer to other files of the repository by relative links, which work where the
repository is browsed. In the site such a link becomes its text and the path.
"""

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # tests of the functions below need no Sphinx
    from sphinx.application import Sphinx

SITE = "docs"
# [text](folder/file.md#section); no image, no URL, no section of the same page
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(?:#[^)]*)?\)")


def spell_out(text: str, folder: str) -> str:
    """Replaces links out of the site by their text and the path.

    Args:
      text: Markdown.
      folder: folder of the page, from the root of the repository.

    Returns:
      The Markdown without such links.
    """
    is_page = folder.split("/")[0] == SITE

    def replace(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        inside = is_page and path.startswith(f"{SITE}/")
        return match[0] if inside else f"{match[1]} (`{path}`)"

    return LINK.sub(replace, text)


def _on_source_read(app: "Sphinx", docname: str, source: list[str]) -> None:
    source[0] = spell_out(source[0], posixpath.join(SITE, posixpath.dirname(docname)))


def _on_include_read(
    app: "Sphinx", path: Path, docname: str, source: list[str]
) -> None:
    folder = posixpath.normpath(posixpath.join(SITE, path.parent.as_posix()))
    source[0] = spell_out(source[0], folder)


def setup(app: "Sphinx") -> dict[str, Any]:
    """Registers the extension."""
    app.connect("source-read", _on_source_read)
    app.connect("include-read", _on_include_read)
    return {"parallel_read_safe": True}
