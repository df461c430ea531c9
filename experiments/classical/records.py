"""Files of records, one JSON line each, that a rerun appends to; and what made them."""

from __future__ import annotations

from pathlib import Path

from experiments.records.files import origin, record_lines


def complete_lines(path: Path) -> list[str]:
    """The lines of a file, if any, without the incomplete last line of a killed run."""
    return record_lines(path, interrupted=True) if path.exists() else []


def make_ready(path: Path) -> None:
    """Makes the folder of a file to append to, and removes an incomplete last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.write_text("".join(complete_lines(path)), encoding="utf-8")


def made_with() -> str:
    """A line for the end of a table: the commit, the versions and the device."""
    made = origin()
    packages = {"Python": made["python"], **made["versions"]}
    versions = ", ".join(f"{name} {of}" for name, of in packages.items() if of)
    device = made["device"]
    return f"Commit {made['commit']}; {versions}; {device['count']} x {device['kind']}."
