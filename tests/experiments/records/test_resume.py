"""Runs that are interrupted and go on, to the very numbers of one that is not."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, run
from experiments.records import files
from experiments.records.files import read_record
from experiments.records.run import record_run
from experiments.training import (
    compile_program,
    make_program,
)
from experiments.training.checkpoints import CheckpointError, Checkpoints
from tests.experiments.records.interrupted import (
    CONFIG,
    KilledError,
    assert_same_record,
    go,
    without_seconds,
)


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


@pytest.mark.slow
def test_random_keys_and_augmentation_go_on_as_they_were(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, [48, 8, 8, 3], np.uint8)
    split = data.Split(jnp.asarray(images), jnp.arange(48) % 10)
    dataset = data.Dataset(10, split, split, split)
    config = dataclasses.replace(
        CONFIG,
        optimizer="nlcg",
        optimizer_options={"preconditioner": "hutchinson"},
        augmentation="crop_flip",
    )
    program = make_program(config, dataset)
    state = program.init(config.seed, config.learning_rate)
    # Bits of the optimizer's key, and a typed key of the data and the augmentation.
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    assert any(leaf.dtype == jnp.uint32 for leaf in jax.tree.leaves(state.opt_state))
    compiled = compile_program(program, dataset)
    path = tmp_path / "whole.jsonl"
    record_run(path, compiled, config, dataset)
    with pytest.raises(KilledError):
        go(tmp_path, compiled, dataset, config, killed_at=2)
    go(tmp_path, compiled, dataset, config)
    assert_same_record(tmp_path / "run.jsonl", read_record(path))


def test_a_resumed_record_names_each_commit(
    compiled, few_digits, whole, tmp_path, monkeypatch
):
    # The third call leaves no step before it is killed, and the last repeats a commit.
    calls = [("a", 1, 1), ("b", 2, 1), ("c", 3, 9), ("d", 3, 1), ("b", None, 1)]
    for commit, killed_at, every in calls:
        monkeypatch.setattr(files, "_commit", lambda commit=commit: commit)
        with pytest.raises(KilledError) if killed_at else contextlib.nullcontext():
            go(tmp_path, compiled, few_digits, killed_at=killed_at, every=every)
    path = tmp_path / "run.jsonl"
    record = read_record(path)
    assert [(line["step"], line["commit"]) for line in record.resumed] == [
        (8, "b"),
        (16, "d"),
        (24, "b"),
    ]
    assert record.header["commit"] == "a"
    assert record.commits == ("a", "b", "d")
    assert record.resumed[0] == {
        "step": 8,
        "commit": "b",
        **{name: record.header[name] for name in ("python", "versions", "device")},
    }
    assert_same_record(path, whole)
    assert whole.resumed == ()
    assert whole.commits == (whole.header["commit"],)


def test_a_run_with_an_infinite_option_goes_on(few_digits, tmp_path):
    config = dataclasses.replace(
        CONFIG, optimizer_options={"rule": "fr", "beta_max": float("inf")}
    )
    compiled = compile_program(make_program(config, few_digits), few_digits)
    with pytest.raises(KilledError):
        go(tmp_path, compiled, few_digits, config, killed_at=2)
    go(tmp_path, compiled, few_digits, config)
    record = read_record(tmp_path / "run.jsonl")
    assert record.config == config
    assert [line["step"] for line in record.resumed] == [16]
    assert record.summary["step"] == 32


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


def test_a_record_is_not_replaced_if_its_checkpoints_are_missing(
    compiled, few_digits, whole, tmp_path
):
    path = tmp_path / "run.jsonl"
    with pytest.raises(KilledError):
        go(tmp_path, compiled, few_digits, killed_at=2)
    content = path.read_bytes()
    (tmp_path / "checkpoints").rename(tmp_path / "right")
    missing = r"run.jsonl' has 16 steps \(\d+ s\), but .* no checkpoint in '.*points'; "
    for every in (1, 2):
        with pytest.raises(ValueError, match=missing + "name the folder .* or move"):
            go(tmp_path, compiled, few_digits, every=every)
    assert path.read_bytes() == content
    # With a checkpoint per three reports none was due.
    with pytest.raises(KilledError):
        go(tmp_path, compiled, few_digits, killed_at=1, every=3)
    assert len(read_record(path).steps) == 8
    path.write_bytes(content)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "right").rename(tmp_path / "checkpoints")
    go(tmp_path, compiled, few_digits)
    assert_same_record(path, whole)


def test_a_long_first_report_without_checkpoints_is_not_replaced(
    compiled, few_digits, whole, tmp_path
):
    path = tmp_path / "run.jsonl"
    header = json.dumps({"kind": "header", **whole.header})

    def leave(seconds):
        step = json.dumps({"kind": "step", **whole.steps[0], "seconds": seconds})
        path.write_text(f"{header}\n{step}\n", encoding="utf-8")

    leave(45.1)
    with pytest.raises(ValueError, match=r"has 1 steps \(45 s\), but there is no"):
        go(tmp_path, compiled, few_digits)
    assert len(read_record(path).steps) == 1
    leave(44.9)
    go(tmp_path, compiled, few_digits)
    assert_same_record(path, whole)


def test_a_record_that_does_not_fit_is_kept_and_told(compiled, few_digits, tmp_path):
    with pytest.raises(KilledError):
        go(tmp_path, compiled, few_digits, killed_at=2)
    path = tmp_path / "run.jsonl"
    content = path.read_text(encoding="utf-8")
    short = "".join(content.splitlines(keepends=True)[:4])
    path.write_text(short, encoding="utf-8")
    with pytest.raises(ValueError, match="has 3 of the 16 steps before the checkpoint"):
        go(tmp_path, compiled, few_digits)
    assert path.read_text(encoding="utf-8") == short
    header = json.loads(content.splitlines()[0])
    header["config"]["seed"] = 5
    path.write_text(json.dumps(header) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="another configuration: seed=0 was 5; resume"):
        go(tmp_path, compiled, few_digits)


def test_a_lost_record_begins_again_at_the_checkpoint(
    compiled, few_digits, whole, tmp_path
):
    path = tmp_path / "run.jsonl"
    with pytest.raises(KilledError):
        go(tmp_path, compiled, few_digits, killed_at=2)
    path.unlink()
    # Killed once more before the next checkpoint, then behind it.
    lost = r"record '.*/run.jsonl' of the steps before 16 is missing"
    with (
        pytest.warns(UserWarning, match=f"{lost}, .* begins at step 16"),
        pytest.raises(KilledError),
    ):
        go(tmp_path, compiled, few_digits, killed_at=3, every=9)
    with pytest.raises(KilledError):
        go(tmp_path, compiled, few_digits, killed_at=3)
    summary = go(tmp_path, compiled, few_digits)

    record = read_record(path)
    assert record.header["begins_at"] == 16
    assert [step["step"] for step in record.steps] == list(range(16, 32))
    assert without_seconds(record.steps) == without_seconds(whole.steps[16:])
    assert without_seconds(record.evaluations) == without_seconds(whole.evaluations[2:])
    assert without_seconds([summary]) == without_seconds([whole.summary])
    assert np.all(np.diff(record.series("seconds")) > 0)


def test_a_record_that_begins_behind_the_checkpoint_is_written_anew(
    compiled, few_digits, whole, tmp_path
):
    path = tmp_path / "run.jsonl"
    with pytest.raises(KilledError):
        go(tmp_path, compiled, few_digits, killed_at=1)
    header = {"kind": "header", **whole.header, "begins_at": 16}
    path.write_text(json.dumps(header) + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="a new record begins at step 8"):
        go(tmp_path, compiled, few_digits)
    assert read_record(path).header["begins_at"] == 8
    assert without_seconds(read_record(path).steps) == without_seconds(whole.steps[8:])


def test_a_record_that_is_lost_at_the_end_is_missed(compiled, few_digits, tmp_path):
    go(tmp_path, compiled, few_digits)
    path = tmp_path / "run.jsonl"
    path.unlink()
    with pytest.raises(
        ValueError, match="run.jsonl' does not exist, .* at step 32, its last"
    ):
        go(tmp_path, compiled, few_digits)
    assert not path.exists()


COMMAND = (
    "--config.optimizer=nlcg",
    "--config.learning-rate=0.1",
    "--config.epochs=4",
)


@pytest.mark.slow
def test_the_command_resumes_and_refuses_a_changed_configuration(tmp_path, capsys):
    paths = [f"--record={tmp_path / 'run.jsonl'}", f"--checkpoint-dir={tmp_path / 'c'}"]
    run.main([*COMMAND, *paths, "--checkpoint-every=2", "--keep=1"])
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["16"]
    record = (tmp_path / "run.jsonl").read_bytes()
    changed = ["--config.batch-size=128", "--config.seed=3"]
    with pytest.raises(
        SystemExit,
        match=r"error: the record .*: batch_size=128 was 256, seed=3 was 0; resume with"
        r" its own configuration, or name another record \(and folder of checkpoints\)",
    ):
        run.main([*COMMAND, *paths, *changed])
    # Without the record it is the checkpoint that tells.
    with pytest.raises(
        SystemExit, match="error: the run in .*: batch_size=128 was 256, seed=3 was 0"
    ):
        run.main([*COMMAND, *changed, paths[1], f"--record={tmp_path / 'new.jsonl'}"])
    assert (tmp_path / "run.jsonl").read_bytes() == record
    run.main([*COMMAND, *paths])
    assert "test accuracy" in capsys.readouterr().out


KILLED_IN_A_WRITE = """
import os, signal, sys, threading
from experiments import run
from experiments.training.checkpoints import Checkpoints

save, rename = Checkpoints.save, os.rename
written = threading.Event()

def never_complete(source, target):
    if "12.orbax-checkpoint-tmp" in str(source):
        written.set()
        threading.Event().wait()  # a folder gets its name once it is complete
    rename(source, target)

def save_and_die(self, step, state, progress):
    save(self, step, state, progress)
    if step == 12:
        assert written.wait(60)
        os.kill(os.getpid(), signal.SIGKILL)  # while a thread writes

os.rename = never_complete

Checkpoints.save = save_and_die
run.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_a_write(tmp_path):
    def arguments(name):
        record = tmp_path / f"{name}.jsonl"
        return [*COMMAND, f"--record={record}", f"--checkpoint-dir={tmp_path / name}"]

    run.main(arguments("whole"))
    # Compiled as in this process, to the same bits.
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"{flags} --xla_force_host_platform_device_count={jax.device_count()}"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_WRITE, *arguments("killed")],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    left = {path.name.partition("-tmp")[0] for path in (tmp_path / "killed").iterdir()}
    assert left == {"4", "8", "12.orbax-checkpoint"}
    (half,) = (tmp_path / "killed").glob("12.*")
    assert any(path.is_file() for path in half.rglob("*"))
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
