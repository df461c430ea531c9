"""Runs that are interrupted and go on, to the very numbers of one that is not."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import run
from experiments.checkpoints import CheckpointError, Checkpoints
from experiments.config import RunConfig
from experiments.recorded_run import record_run
from experiments.records import read_record
from experiments.training import compile_program, make_program

# Batches that do not divide the training set, an average, and a curvature method.
CONFIG = RunConfig(
    optimizer="nlcg_pr+_secant",
    learning_rate=0.02,
    batch_size=24,
    epochs=12,
    epochs_per_report=3,
    ema_decay=0.99,
)


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def compiled(few_digits):
    return compile_program(make_program(CONFIG, few_digits), few_digits)


@pytest.fixture(scope="module")
def whole(compiled, few_digits, tmp_path_factory):
    """A run without an interruption."""
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    record_run(path, compiled, CONFIG, few_digits)
    return read_record(path)


def go(folder, compiled, dataset, config=CONFIG, killed_at=None):
    """Runs with checkpoints, as ``main`` does, and ends at a report if told to."""

    def on_report(report, evaluation):
        if report.number == killed_at:
            raise KilledError

    with Checkpoints(str(folder / "checkpoints"), config) as checkpoints:
        return record_run(
            folder / "run.jsonl",
            compiled,
            config,
            dataset,
            on_report=on_report,
            checkpoints=checkpoints,
        )


def without_seconds(lines):
    timed = ("seconds", "compile_seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def assert_same_record(path, whole):
    record = read_record(path)
    assert without_seconds(record.steps) == without_seconds(whole.steps)
    assert without_seconds(record.evaluations) == without_seconds(whole.evaluations)
    assert without_seconds([record.summary]) == without_seconds([whole.summary])
    seconds = record.series("seconds")
    assert np.all(np.diff(seconds) > 0)
    assert record.summary["seconds"] == pytest.approx(seconds[-1])


def test_an_interrupted_run_ends_as_one_that_was_not(
    compiled, few_digits, whole, tmp_path
):
    for killed_at in (1, 3):
        with pytest.raises(KilledError):
            go(tmp_path, compiled, few_digits, killed_at=killed_at)
    # What a killed process wrote after its last checkpoint, and half a line.
    path = tmp_path / "run.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "step", "step": 24, "loss": 7.0}) + "\n")
        file.write('{"kind": "step", "st')
    summary = go(tmp_path, compiled, few_digits)
    assert_same_record(path, whole)
    # The same command again has nothing to do.
    content = path.read_bytes()
    assert go(tmp_path, compiled, few_digits) == {**summary}
    assert path.read_bytes() == content


def test_a_run_killed_between_its_last_checkpoint_and_its_summary(
    compiled, few_digits, whole, tmp_path
):
    with pytest.raises(KilledError):
        go(tmp_path, compiled, few_digits, killed_at=4)
    go(tmp_path, compiled, few_digits)
    assert_same_record(tmp_path / "run.jsonl", whole)


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    compiled, few_digits, whole, tmp_path
):
    path = tmp_path / "run.jsonl"
    header = json.dumps({"kind": "header", **whole.header})
    path.write_text(header + '\n{"kind": "st', encoding="utf-8")
    go(tmp_path, compiled, few_digits)
    assert_same_record(path, whole)


def test_a_record_that_does_not_fit_is_kept_and_told(compiled, few_digits, tmp_path):
    with pytest.raises(KilledError):
        go(tmp_path, compiled, few_digits, killed_at=2)
    path = tmp_path / "run.jsonl"
    content = path.read_text(encoding="utf-8")
    path.unlink()
    with pytest.raises(ValueError, match="run.jsonl' does not exist, .* at step 16"):
        go(tmp_path, compiled, few_digits)
    short = "".join(content.splitlines(keepends=True)[:4])
    path.write_text(short, encoding="utf-8")
    with pytest.raises(ValueError, match="has 3 of the 16 steps before the checkpoint"):
        go(tmp_path, compiled, few_digits)
    assert path.read_text(encoding="utf-8") == short
    header = json.loads(content.splitlines()[0])
    header["config"]["seed"] = 5
    path.write_text(json.dumps(header) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="run.jsonl' is of another configuration"):
        go(tmp_path, compiled, few_digits)


COMMAND = (
    "--config.optimizer=nlcg_fr",
    "--config.learning-rate=0.1",
    "--config.epochs=4",
)


def test_the_command_resumes_and_refuses_a_changed_configuration(tmp_path, capsys):
    paths = [f"--record={tmp_path / 'run.jsonl'}", f"--checkpoint-dir={tmp_path / 'c'}"]
    run.main([*COMMAND, *paths, "--checkpoint-every=2", "--keep=1"])
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["16"]
    (tmp_path / "run.jsonl").rename(tmp_path / "other.jsonl")
    with pytest.raises(SystemExit, match="error: .* batch_size=128 was 256"):
        run.main([*COMMAND, *paths, "--config.batch-size=128"])
    (tmp_path / "other.jsonl").rename(tmp_path / "run.jsonl")
    run.main([*COMMAND, *paths])
    assert "test accuracy" in capsys.readouterr().out


KILLED_IN_A_WRITE = """
import os, signal, sys
from experiments import run
from experiments.checkpoints import Checkpoints

save = Checkpoints.save

def save_and_die(self, step, state, progress):
    save(self, step, state, progress)
    if step == 12:
        os.kill(os.getpid(), signal.SIGKILL)  # while a thread writes

Checkpoints.save = save_and_die
run.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_a_write(tmp_path):
    def arguments(name):
        record = tmp_path / f"{name}.jsonl"
        return [*COMMAND, f"--record={record}", f"--checkpoint-dir={tmp_path / name}"]

    run.main(arguments("whole"))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_WRITE, *arguments("killed")],
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={jax.device_count()}",
        },
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    complete = {
        path.name for path in (tmp_path / "killed").iterdir() if path.name.isdigit()
    }
    assert {"4", "8"} <= complete <= {"4", "8", "12"}
    run.main(arguments("killed"))
    assert_same_record(tmp_path / "killed.jsonl", read_record(tmp_path / "whole.jsonl"))


def test_a_full_disk_ends_a_run_which_then_goes_on(
    compiled, few_digits, whole, tmp_path, monkeypatch
):
    save = Checkpoints.save

    def on_a_full_disk(self, step, state, progress):
        if step == 24:
            with self._writing("a checkpoint"):
                raise OSError(28, os.strerror(28))
        save(self, step, state, progress)

    monkeypatch.setattr(Checkpoints, "save", on_a_full_disk)
    with pytest.raises(CheckpointError, match="the disk is full"):
        go(tmp_path, compiled, few_digits)
    monkeypatch.undo()
    go(tmp_path, compiled, few_digits)
    assert_same_record(tmp_path / "run.jsonl", whole)
