"""Stages: their order, the time limit, groups, progress, other jobs."""

import io
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rich.console

from experiments.config import RunConfig
from experiments.errors import UserError
from experiments.records.files import read_record
from experiments.tuning.jobs import PlannedJob, Workers
from experiments.tuning.runner import PlannedRun, Runner
from experiments.tuning.study import Stage, jobs_stage, run_study
from tests.experiments.tuning.fake_runner import FakeRunner


def planned(folder, *optimizers):
    return [
        PlannedRun(
            RunConfig(optimizer=name, learning_rate=0.1 + number / 10),
            folder / "runs" / f"{number}-{name}.jsonl",
        )
        for number, name in enumerate(optimizers)
    ]


def study(stages, runner=None, **settings):
    runner = runner or FakeRunner(lambda config: config.learning_rate)
    console = rich.console.Console(file=io.StringIO(), width=200)
    complete = run_study(stages, runner, console, **settings)
    return complete, runner, console.file.getvalue()


def test_progress_counts_all_jobs_and_those_of_earlier_calls(tmp_path):
    runs = planned(tmp_path, "sgd", "adam", "sgd")
    complete, first, text = study([jobs_stage(runs[:1])])
    assert complete
    assert "1 of 1, 0:00:00 to go: runs/0-sgd: training loss 0.1000, test ac" in text
    # A stage may need fewer jobs than it might have.
    stages = [Stage(5, lambda: iter([runs[:2]])), jobs_stage(runs[2:])]
    complete, rest, text = study(stages)
    assert complete
    assert [path.stem for path in first.ran + rest.ran] == ["0-sgd", "1-adam", "2-sgd"]
    assert "2 of 6, " in text
    assert "3 of 3, 0:00:00 to go: runs/2-sgd: training loss 0.3000" in text
    assert "1 of 3 were recorded by an earlier call and are not repeated" in text
    assert study(stages, show_each=False)[2].splitlines() == [
        "3 of 3 were recorded by an earlier call and are not repeated"
    ]


def test_a_time_limit_stops_before_a_job_that_would_end_later(tmp_path):
    runs = planned(tmp_path, "sgd", "adam")
    slow = FakeRunner(lambda _: math.nan)
    slow.longest = 2.0
    complete, runner, text = study([jobs_stage(runs)], slow, seconds=1.0)
    assert not complete
    assert not runner.ran
    assert "stopped before runs/0-sgd, 0 of 2 done; run the same command" in text
    complete, runner, text = study([jobs_stage(runs)], slow, seconds=100.0)
    assert complete
    assert "2 of 2, 0:00:00 to go: runs/1-adam: diverged" in text


def test_neighbors_of_one_program_share_a_call(tmp_path):
    runs = planned(tmp_path, "sgd", "sgd", "sgd", "adam", "adam", "sgd")
    _, runner, _ = study([jobs_stage(runs)], together=2)
    assert runner.groups == [2, 1, 2, 1]
    assert [path.stem[:1] for path in runner.ran] == list("012345")


def test_other_jobs_leave_their_file_and_are_not_repeated(tmp_path):
    def work():
        (tmp_path / "done.json").write_text("{}")
        return "went well"

    runs = planned(tmp_path, "sgd", "sgd")
    stages = [jobs_stage([runs[0], PlannedJob(tmp_path / "done.json", work), runs[1]])]
    _, runner, text = study(stages, together=3)
    assert f"2 of 3, 0:00:00 to go: {tmp_path.name}/done: went well" in text
    assert runner.groups == [1, 1]
    assert "went well" not in study(stages)[2]


def test_a_later_stage_is_planned_after_the_earlier_ones_have_run(tmp_path):
    runs = planned(tmp_path, "sgd", "adam")

    def later():
        assert runs[0].path.exists()
        yield runs[1:]

    _, runner, _ = study([jobs_stage(runs[:1]), Stage(1, later)])
    assert len(runner.ran) == 2


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="together=0 must be at least 1"):
        study([], together=0)
    with pytest.raises(ValueError, match="seconds=0.0 must be greater than 0"):
        study([], seconds=0.0)


@pytest.mark.slow
def test_workers_side_by_side_leave_the_records_of_one_process(tmp_path):
    def runs(folder):
        shared = {"learning_rate": 0.05, "epochs": 2, "epochs_per_report": 1}
        return [
            PlannedRun(
                RunConfig(optimizer=name, batch_size=64, **shared),
                tmp_path / folder / f"{name}.jsonl",
            )
            for name in ("sgd", "nesterov", "adam")
        ]

    losses = {}
    for folder, workers in (("one", 1), ("two", 2)):
        runner = Runner(tmp_path, checkpoints=workers == 2)
        complete, _, text = study([jobs_stage(runs(folder))], runner, workers=workers)
        assert complete
        assert text.count("test accuracy") == 3
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == [
            "adam.jsonl",
            "nesterov.jsonl",
            "sgd.jsonl",
        ]
        losses[folder] = [read_record(r.path).series("loss") for r in runs(folder)]
    # Programs of one thread and of two add in another order.
    np.testing.assert_allclose(losses["two"], losses["one"], rtol=1e-4)


def test_more_workers_than_cores_are_refused(tmp_path):
    with pytest.raises(ValueError, match="workers=10000 must be at most"):
        study([jobs_stage([])], Runner(tmp_path), workers=10_000)
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        study([jobs_stage([])], Runner(tmp_path), workers=0)


PARENT = """
import os, time
from pathlib import Path
from experiments.tuning.jobs import Workers
from experiments.tuning.runner import Runner
with Workers(1, Runner(Path("."), checkpoints=False)) as workers:
    print(workers._pool.submit(os.getpid).result(), flush=True)
    future = workers._pool.submit(time.sleep, 600)
    END
"""


def ends(worker):
    """Whether a process ends within half a minute; it is killed if it does not."""
    for _ in range(300):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    return False


@pytest.mark.slow
def test_workers_end_with_a_parent_that_was_killed():
    command = [sys.executable, "-c", PARENT.replace("END", "future.result()")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.terminate()
    assert ends(worker)


@pytest.mark.slow
def test_workers_end_in_the_middle_of_a_run_if_their_parent_gives_up():
    command = [sys.executable, "-c", PARENT.replace("END", "raise OSError('full')")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.endswith("OSError: full\n")
    assert ends(int(done.stdout))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_that_names_its_run(tmp_path):
    (run,) = planned(tmp_path, "sgd")
    with Workers(1, Runner(tmp_path)) as workers:
        worker = workers._pool.submit(os.getpid).result()
        future = workers._pool.submit(time.sleep, 600)
        workers._running[future] = [run]
        os.kill(worker, signal.SIGKILL)
        message = r"a process that trained one of \['.*0-sgd.jsonl'\] ended unexp"
        with pytest.raises(UserError, match=message):
            workers.next_result()
        with pytest.raises(UserError, match=message):
            workers.start([run])
