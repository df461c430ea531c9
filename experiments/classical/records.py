"""Files of records, one JSON line each, that a rerun appends to."""

from __future__ import annotations

from pathlib import Path


def complete_lines(path: Path) -> list[str]:
    """The lines of a file without the half line that a killed run may leave."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def make_ready(path: Path) -> None:
    """Makes the folder of a file that is appended to, and removes its half line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.write_text("".join(complete_lines(path)), encoding="utf-8")
