"""Says whether sdist and wheel in a folder hold what they should: `... dist`."""

import sys
import tarfile
import zipfile
from pathlib import Path

IN_SDIST = (
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile"),
    *("PKG-INFO", "README.md", "SECURITY.md", "hatch_build.py", "pyproject.toml"),
    *("docs/conf.py", "docs/index.md", "experiments/README.md"),
    *("experiments/classical/profiles.png", "nlcg_optax/py.typed"),
    *("tests/conftest.py", "tests/test_surface.py"),
)
IN_WHEEL = ("nlcg_optax/__init__.py", "nlcg_optax/py.typed")


def missing(folder: Path) -> list[str]:
    """Returns what is wrong with the two files, in words."""
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.split("/", 1)[-1] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
        (metadata,) = (name for name in in_wheel if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    tops = {name.split("/")[0] for name in in_wheel}
    wrong = [f"sdist lacks {name}" for name in IN_SDIST if name not in in_sdist]
    wrong += [f"wheel lacks {name}" for name in IN_WHEEL if name not in in_wheel]
    wrong += [
        f"wheel has {top}"
        for top in tops
        if top != "nlcg_optax" and not top.endswith(".dist-info")
    ]
    if "Project-URL: " not in text:
        wrong.append("the metadata have no Project-URL")
    if "](docs/" in text or "](experiments/" in text:
        wrong.append("the description has relative links")
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(missing(Path(sys.argv[1]))) or None)
