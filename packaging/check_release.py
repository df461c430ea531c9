"""Says whether a tag may be released: `... v0.1.0 https://host/owner/nlcg_optax`.

The tag is the version in every file that states one; the changelog has that version
with a date; the address in pyproject.toml is that of the
repository that releases.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def versions() -> dict[str, str]:
    """Returns the version that each file states."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    package = (ROOT / "nlcg_optax" / "__init__.py").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    readme = (ROOT / "README.md").read_text()
    recipe = (ROOT / "packaging" / "conda" / "recipe.yaml").read_text()
    return {
        "pyproject.toml": project["version"],
        "nlcg_optax": re.findall(r'^__version__ = "(.*)"$', package, re.M)[0],
        "CITATION.cff": re.findall(r"^version: (.*)$", citation, re.M)[0],
        "README.md": re.findall(r"^  version = \{(.*)\},$", readme, re.M)[0],
        "recipe.yaml": re.findall(r'^  version: "(.*)"$', recipe, re.M)[0],
    }


def faults(tag: str, repository: str) -> list[str]:
    """Returns what keeps the tag from a release, in words."""
    found = [
        f"{where} has version {version}, the tag is {tag}"
        for where, version in versions().items()
        if f"v{version}" != tag
    ]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    heading = rf"^## \[?{re.escape(tag[1:])}\]? - \d{{4}}-\d\d-\d\d$"
    if not re.search(heading, changelog, re.M):
        found.append(f"CHANGELOG.md has no heading '## [{tag[1:]}] - YYYY-MM-DD'")
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    stated = tool["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    if stated.rstrip("/") != repository.rstrip("/"):
        found.append(f"pyproject.toml has repository={stated!r}, this is {repository}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(faults(*sys.argv[1:])) or None)
