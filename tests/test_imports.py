"""Imports run one way: between files, and between the folders of a package."""

import ast
import graphlib
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("nlcg_optax", "experiments")


def modules(package: str) -> dict[str, Path]:
    """The files of a package by the names of their modules."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def named(path: Path, files: Container[str]) -> Iterator[str]:
    """The modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(str(module), names, 0):
                for alias in names:
                    inside = f"{module}.{alias.name}"
                    yield inside if inside in files else module
            case ast.Call(ast.Attribute(attr="import_module"), [ast.Constant(name)]):
                yield name


def imports(package: str) -> dict[str, set[str]]:
    """The files of a package that each of them imports, without ``__init__.py``."""
    files = modules(package)
    return {name: set(named(path, files)) & set(files) for name, path in files.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_files(package):
    found = imports(package)
    assert sum(map(len, found.values())) > 2 * len(found)  # the files were read
    graphlib.TopologicalSorter(found).prepare()  # raises where there is a circle


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_folders(package):
    def folder(module: str) -> str:
        return module.split(".")[1]

    found: dict[str, set[str]] = {}
    for name, others in imports(package).items():
        above = {folder(other) for other in others} - {folder(name)}
        if not name.endswith("__init__"):
            found.setdefault(folder(name), set()).update(above)
    assert len(found) > 10
    graphlib.TopologicalSorter(found).prepare()
