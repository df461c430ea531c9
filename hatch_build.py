"""Metadata of a release that depend on where the repository is.

A registry shows README.md outside of the repository, where relative links lead nowhere.
Here they become links to the tag of this version, below the address that pyproject.toml
has in `[tool.hatch.metadata.hooks.custom]`. Without an address they become plain text.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPER = "https://arxiv.org/abs/1812.02886"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)")  # relative ones
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def absolute_links(text: str, repository: str, version: str) -> str:
    """Makes the relative links and images of a Markdown text absolute."""

    def replace(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        if not repository:
            return "" if mark else words
        kind = "raw" if mark else "blob"
        return f"{mark}[{words}]({repository}/{kind}/v{version}/{target})"

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(replace, part) for part in parts[::2]]
    return "".join(parts)


def urls_of(repository: str, version: str) -> dict[str, str]:
    """The project's links, as the registry shows them."""
    if not repository:
        return {"Paper": PAPER}
    return {
        "Source": repository,
        "Documentation": f"{repository}/blob/v{version}/docs/index.md",
        "Changelog": f"{repository}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
        "Paper": PAPER,
    }


class ReleaseMetadata(MetadataHookInterface):
    """Fills in `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Adds the two dynamic fields of pyproject.toml."""
        repository = self.config["repository"].rstrip("/")
        version = metadata["version"]
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute_links(text, repository, version),
        }
        metadata["urls"] = urls_of(repository, version)
