"""Files that hold one JSON object."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes one JSON object, in full or not at all.

    Args:
      path: path of the file, which is replaced if it exists; its folder is created.
      value: the object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each process has its own, so that two of them do not mix their lines.
    incomplete = path.with_name(f"{path.name}.incomplete{os.getpid()}")
    incomplete.write_text(json.dumps(value, indent=1), encoding="utf-8")
    incomplete.replace(path)
