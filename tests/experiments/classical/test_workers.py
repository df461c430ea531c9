"""The worker processes of the command, and the records that may be continued."""

import json
import sys
import types

import pytest

from experiments.classical import __main__ as command
from experiments.errors import UserError

READY = "import json, os, sys, time; print(json.dumps({'commit': 'abc'}), flush=True)\n"
ANSWER = """
for line in sys.stdin:
    if '"second"' in line:
        os.kill(os.getpid(), 11)
    answer = {"work": 3.0, "seconds": 1.0, "solved": True, "value": 0.0, "dimension": 1}
    print(json.dumps({**json.loads(line), "start_value": 1.0, **answer}), flush=True)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command with a worker of one's own on two problems; the records."""
    chosen = types.SimpleNamespace(select=lambda _: ("first", "second"))
    monkeypatch.setitem(sys.modules, "experiments.classical.problems", chosen)
    path = tmp_path / "records.jsonl"

    def run(code, *arguments):
        monkeypatch.setattr(command, "WORKER", (sys.executable, "-c", code))
        given = [f"--records={path}", f"--output={tmp_path}", "--solvers=SciPy CG"]
        command.main([*given, *arguments])
        return [json.loads(line) for line in path.read_text().splitlines()]

    return run


def test_a_crash_counts_as_not_solved_and_records_name_what_made_them(run):
    first, second = run(READY + ANSWER)
    assert [first["solved"], second["solved"]] == [True, False]
    assert second["event"] == "no answer"
    for record in (first, second):
        assert record["commit"] == "abc"
        assert record["versions"]["python"].startswith("3.")
    # A rerun runs no pair again.
    assert run("raise SystemExit") == [first, second]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package", "did not start; (?s:.*)No module named 'no_such_pa"),
        (READY + "sys.exit('no memory')", "exited with status 1 (?s:.*)no memory"),
        # No task can be sent to this one.
        (
            "import os; os.close(0)\n" + READY + "sys.exit('no memory')",
            "exited with status 1 (?s:.*)no memory",
        ),
    ],
)
def test_a_worker_that_ends_by_itself_is_an_error_and_no_record(
    run, code, message, tmp_path
):
    with pytest.raises(SystemExit, match=f"error: the worker process {message}"):
        run(code)
    assert not (tmp_path / "records.jsonl").read_text()


def test_a_worker_that_is_not_ready_in_time_is_an_error(monkeypatch):
    code = "import time; time.sleep(60)"
    monkeypatch.setattr(command, "WORKER", (sys.executable, "-c", code))
    monkeypatch.setattr(command, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(command, "EXIT_SECONDS", 0.1)
    with pytest.raises(UserError, match="is not ready in time"):
        command.Worker().ask({}, 1.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--max-work=99", r"max_work=99\.0 was 10000\.0 in '.*records\.jsonl'; repeat"),
        ("--max-seconds=9", r"max_seconds=9\.0 was 60\.0 in"),
        ("--precision=float32", "precision='float32' was 'float64' in"),
    ],
)
def test_records_of_other_settings_are_not_continued(run, changed, message):
    run(READY + ANSWER)
    with pytest.raises(SystemExit, match=f"error: {message}"):
        run(READY + ANSWER, changed)
