import json
import os
from pathlib import Path

import pytest

from experiments.records.json_file import write_json


def test_an_object_is_written_in_full_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    for process in (7, 8):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        with pytest.raises(KeyboardInterrupt):
            write_json(path, {"a": process})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2}
    # The file of one process is not that of the other.
    others = sorted(found for found in path.parent.iterdir() if found != path)
    assert [json.loads(found.read_text())["a"] for found in others] == [7, 8]
