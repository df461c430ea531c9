"""The GPU study: its order, how it goes on after a stop, and the checks of a device."""

import dataclasses
import json
import time
from typing import ClassVar

import numpy as np
import pytest
import rich.console

from experiments import cifar100_gpu, data
from experiments.cifar100_gpu import SMALL, GpuArguments, Study, cells, run_study
from experiments.config import RunConfig
from experiments.device_checks import check_parity, images_per_second
from experiments.learning_rate_search import log_grid
from experiments.records import RecordWriter


def write_record(path, config, loss, *, kind="summary"):
    with RecordWriter(path, config, overwrite=True) as writer:
        if kind == "stopped":
            writer.write("stopped", {"reason": "the loss became nan"})
        elif kind == "summary":
            names = ("train_loss", "validation_loss", "validation_accuracy")
            writer.write("summary", dict.fromkeys(names, loss))


class FakeRunner:
    """Stands for training: an optimum at the upper edge for ``nesterov`` alone."""

    ran: ClassVar[list[str]] = []

    def __init__(self, data_dir, console):
        self.longest = 0.0

    def run(self, cell):
        config = cell.config
        optimum = 0.01 if "nlcg" in config.optimizer else 10.0
        loss = abs(np.log(config.learning_rate / optimum))
        diverged = config.optimizer == "sgd"
        kind = "stopped" if diverged else "summary"
        write_record(cell.path, config, loss, kind=kind)
        self.ran.append(cell.path.stem)
        self.longest = 0.5


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs the small study with training replaced, in calls of given seconds."""
    monkeypatch.setattr(cifar100_gpu, "Runner", FakeRunner)
    monkeypatch.setattr(FakeRunner, "ran", [])
    (tmp_path / "checks.json").write_text("{}")
    console = rich.console.Console(file=open("/dev/null", "w"))  # noqa: SIM115

    def run(seconds):
        arguments = GpuArguments(seconds=seconds, out=tmp_path, small=True)
        complete = run_study(arguments, console)
        ran = FakeRunner.ran.copy()
        FakeRunner.ran.clear()
        return complete, ran

    yield run, tmp_path
    console.file.close()


def test_the_study_runs_everything_once_in_its_order(study):
    run, out = study
    complete, ran = run(60)
    assert complete
    rate = 0.1 / 256 * 512
    assert ran[:4] == [
        f"batch512-{name}-lr{rate:.5g}-seed0" for name in cifar100_gpu.PAPER_OPTIMIZERS
    ]
    # Two rates for each of three methods, two more for each since one was on its edge.
    assert len(list((out / "search").iterdir())) == 3 * (2 + 2)
    finals = [path.stem for path in (out / "tuned").iterdir()]
    assert len(finals) == 3
    upper = log_grid(1.6, 2, 2.0)[1] * 4
    assert f"batch512-nesterov-lr{upper:.5g}-seed10" in finals
    assert len(ran) == len(set(ran)) == 4 + 12 + 3 + 4
    assert run(60) == (True, [])


def test_a_call_ends_in_time_and_the_next_goes_on(study):
    run, out = study
    complete, first = run(0.4)
    assert not complete
    assert len(first) == 1
    # Of a run that was killed there is a record without an end: it is repeated.
    second = next(c for c in cells(SMALL, out) if not c.path.exists())
    write_record(second.path, second.config, 0.0, kind="unfinished")
    complete, rest = run(60)
    assert complete
    assert rest[0] == second.path.stem
    assert len(first + rest) == len(set(first + rest)) == 23


def test_the_papers_cells_are_the_papers():
    first = next(cells(Study(), cifar100_gpu.Path("out")))
    assert first.config == RunConfig(
        dataset="cifar100",
        model="resnet32",
        optimizer="sgd",
        learning_rate=6.4,
        schedule="paper",
        batch_size=16384,
        micro_batches=16,
        epochs=200,
        epochs_per_report=20,
        l2=2e-4,
        ema_decay=0.9999,
        augmentation="crop_flip",
        compute_dtype="bfloat16",
        validation_examples=0,
    )


def test_without_data_the_command_says_what_to_run(tmp_path):
    with pytest.raises(SystemExit, match=r"error: [^\n]*; run\n  python -m experim"):
        cifar100_gpu.main([f"--data-dir={tmp_path}", f"--out={tmp_path}"])


def test_a_cpu_agrees_with_itself_and_bfloat16_nearly(few_digits):
    config = RunConfig(model="mlp")
    same = check_parity(config, few_digits, "float32")
    assert same.loss_difference == same.gradient_difference == 0
    rough = check_parity(config, few_digits, "bfloat16")
    assert 0 < rough.loss_difference < 0.05
    assert 0 < rough.gradient_difference < 0.2


def test_throughput_counts_the_images_of_the_calls_after_the_first(few_digits):
    config = RunConfig(model="mlp", optimizer="sgd", batch_size=16, epochs=1)
    start = time.perf_counter()
    speed = images_per_second(config, few_digits)
    # No more than all of its 128 images in a time that surely lies within it.
    assert speed > 128 / (time.perf_counter() - start)


def test_the_runner_trains_a_cell_and_records_it(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, options: few_digits)
    console = rich.console.Console(record=True, width=200)
    runner = cifar100_gpu.Runner(tmp_path, console)
    config = RunConfig(optimizer="sgd", learning_rate=0.1, batch_size=16, epochs=2)
    for rate in (0.1, 1e30):
        cell = cifar100_gpu._cell(
            tmp_path, dataclasses.replace(config, learning_rate=rate)
        )
        runner.run(cell)
        assert cifar100_gpu.finished(cell) is not None
    assert "images/s" in (told := console.export_text())
    assert "diverged" in told
    assert json.loads(cell.path.read_text().splitlines()[0])["seed"] == 0
