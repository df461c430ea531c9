"""Several processes on this machine, as several hosts would be."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.records.files import read_record
from experiments.training.processes import CoordinatorError, ProcessOptions, connect
from tests.experiments import process_worker

HEARTBEAT = 60
MARGIN = 30  # for the end of a process on a busy machine
# Of three that may notice first: the run, JAX's heartbeat, or the collectives on CPUs
# (Gloo), which may end a process before it can say anything.
TOLD = (
    r"error: process \d of \d lost the others|another task died|"
    "Terminating process because the JAX distrib|gloo::EnforceNotMet"
)
DEADLINE = 240  # for what takes some seconds on a machine that has nothing else to do


def free_address():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def start(arguments, devices, log):
    """A process with devices of its own."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"{flags} --xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "NPROC": "16",  # threads for all devices, see tests/conftest.py
    }
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[3],
        )


def start_runs(folder, count, devices, layout):
    """All processes of `experiments.run`, with their logs in ``folder``."""
    address = free_address()
    return [
        start(
            [
                "-m",
                "experiments.run",
                "--config.optimizer=nlcg",
                "--config.optimizer-options",
                "preconditioner",
                "rms",
                "--config.learning-rate=1e-3",
                "--config.batch-size=None",
                "--config.epochs=150",
                "--config.epochs-per-report=25",
                *layout,
                f"--record={folder / 'run.jsonl'}",
                f"--checkpoint-dir={folder / 'checkpoints'}",
                f"--processes.coordinator={address}",
                f"--processes.count={count}",
                f"--processes.index={index}",
                f"--processes.heartbeat-seconds={HEARTBEAT}",
            ],
            devices,
            folder / f"{count}.{index}.log",
        )
        for index in range(count)
    ]


def stop(processes):
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The record of a run of one process on one device."""
    folder = tmp_path_factory.mktemp("alone")
    (run,) = start_runs(folder, 1, 1, [])
    try:
        assert run.wait(timeout=DEADLINE) == 0, (folder / "1.0.log").read_text()
    finally:
        stop([run])
    return read_record(folder / "run.jsonl")


FULLY_SHARDED = ["--config.data-devices=1", "--config.shard-devices=None"]
HYBRID = ["--config.shard-devices=2"]


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_which_goes_on_with_other_processes(
    alone, tmp_path
):
    before, after = (4, 1, HYBRID), (2, 2, FULLY_SHARDED)
    checkpoints, count = tmp_path / "checkpoints", before[0]
    logs = [tmp_path / f"{count}.{index}.log" for index in range(count - 1)]
    *others, last = runs = start_runs(tmp_path, *before)
    try:
        end = time.monotonic() + DEADLINE
        while not any(name.isdigit() for name in names_in(checkpoints)):
            assert time.monotonic() < end, logs[0].read_text()
            assert runs[0].poll() is None, logs[0].read_text()
            time.sleep(0.05)
        last.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert all(run.wait(timeout=DEADLINE) != 0 for run in others)
        # A broken connection tells at once; without one the heartbeat does.
        assert time.monotonic() - killed < HEARTBEAT + MARGIN
    finally:
        stop(runs)
    for log in logs:
        assert re.search(TOLD, log.read_text()), log.read_text()
    complete = max(int(name) for name in names_in(checkpoints) if name.isdigit())
    assert 0 < complete < 150
    kept = lines_before(complete, tmp_path / "run.jsonl")
    assert [json.loads(line)["step"] for line in kept] == list(range(complete))

    runs = start_runs(tmp_path, *after)
    log = tmp_path / f"{after[0]}.0.log"
    try:
        codes = [run.wait(timeout=DEADLINE) for run in runs]
    finally:
        stop(runs)
    assert codes == [0] * len(runs), log.read_text()
    assert "record in" in log.read_text()
    # Seconds included, which a run that began anew would not repeat.
    assert lines_before(complete, tmp_path / "run.jsonl") == kept
    record = read_record(tmp_path / "run.jsonl")
    assert [step["step"] for step in record.steps] == list(range(150))
    # Sums in another order: roundings of 2^-24 in each of 150 steps, a few sums each,
    # while the loss falls to a tenth.
    np.testing.assert_allclose(
        record.series("loss"), alone.series("loss"), rtol=10 * 150 * 2**-24 * 10
    )
    assert alone.series("loss")[-1] < 0.5 * alone.series("loss")[0]


def lines_before(step, path):
    """The lines of the steps before one, as they are, without half a line."""
    lines = [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
    return [
        line
        for line in lines
        if (found := json.loads(line))["kind"] == "step" and found["step"] < step
    ]


def names_in(folder):
    return os.listdir(folder) if folder.exists() else []


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("count", [2, 4])
def test_every_process_brings_its_own_part_of_the_batch(count, tmp_path):
    address, worker = free_address(), "tests.experiments.process_worker"
    logs = [tmp_path / f"{index}.log" for index in range(count)]
    workers = [
        start(["-m", worker, address, str(count), str(index)], 4 // count, log)
        for index, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=DEADLINE) for process in workers]
    finally:
        stop(workers)
    assert codes == [0] * count, logs[0].read_text()
    # On the eight devices of this process.
    expected = process_worker.train(1, 0), process_worker.train_on_a_stream()
    assert [len(figures) for figures in expected] == [20, 16 + 2]
    for log in logs:
        found = json.loads(log.read_text().splitlines()[-1])
        for figures, wanted in zip(found, expected):
            np.testing.assert_allclose(figures, wanted, rtol=10 * 20 * 2**-24 * 3)


UNREADABLE_ON_ONE = """
import sys, warnings
import jax, jax.numpy as jnp
from experiments.training import meshes
from experiments.training.checkpoints import Checkpoints
from experiments.config import RunConfig
from experiments.training.processes import ProcessOptions, connect

folder, address, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
connect(ProcessOptions(False, address, 2, index, 60, 60))
warnings.simplefilter("ignore")
state = {"weights": jnp.arange(4096.0).reshape(64, 64)}
state = meshes.place(state, meshes.shardings_of(meshes.make_mesh(1, None), state))
with Checkpoints(folder, RunConfig()) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state, {})
read = Checkpoints._read_arrays

def read_on_one_process(self, step, target):
    if (step, index) == (2, 1):
        raise OSError("this host does not see the file")
    return read(self, step, target)

Checkpoints._read_arrays = read_on_one_process
with Checkpoints(folder, RunConfig()) as checkpoints:
    found = checkpoints.restore(state)
    assert found.state["weights"].sharding == state["weights"].sharding
    print("restored", found.step, float(jnp.sum(found.state["weights"])))
"""


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_left_by_all(tmp_path):
    address, logs = free_address(), [tmp_path / "0.log", tmp_path / "1.log"]
    arguments = ["-c", UNREADABLE_ON_ONE, str(tmp_path / "checkpoints"), address]
    runs = [start([*arguments, str(n)], 1, log) for n, log in enumerate(logs)]
    try:
        codes = [run.wait(timeout=DEADLINE) for run in runs]
    finally:
        stop(runs)
    assert codes == [0, 0], "".join(log.read_text() for log in logs)
    for log in logs:
        assert f"restored 1 {4096 * 4095 / 2}" in log.read_text()
    assert sorted(names_in(tmp_path / "checkpoints")) == ["1", "2.broken-0"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "a:1"}, "count=None and index=None: give all three"),
        ({"auto": True, "coordinator": "a:1", "count": 2, "index": 0}, "auto=True"),
        ({"coordinator": "a", "count": 2, "index": 0}, "must be an address and a port"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "index=2 must be from 0 to"),
        ({"heartbeat_seconds": 0}, "heartbeat_seconds=0 must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ProcessOptions(**settings)


def test_a_coordinator_that_is_not_there():
    address = free_address()
    with pytest.raises(
        CoordinatorError,
        match=rf"coordinator='{address}' was not reached in 1 s .*is process 0 running",
    ):
        connect(ProcessOptions(False, address, 2, 1, start_seconds=1))


def test_auto_outside_of_a_cluster(monkeypatch):
    def initialize(*arguments, **settings):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(
        CoordinatorError,
        match=r"auto=True finds no cluster .* give coordinator, count .*\(coord",
    ):
        connect(ProcessOptions(auto=True))


@pytest.mark.slow
def test_processes_that_do_not_come(tmp_path):
    code = (
        "from experiments.training.processes import ProcessOptions, connect\n"
        f"connect(ProcessOptions(False, '{free_address()}', 2, 0, start_seconds=3))"
    )
    process = start(["-c", code], 1, tmp_path / "log")
    try:
        assert process.wait(timeout=DEADLINE) != 0
    finally:
        stop([process])
    assert re.search(
        "did not connect in 3 s|Terminating process because the JAX distrib",
        (tmp_path / "log").read_text(),
    )
