"""The GPU study: its order, how it goes on after a stop, and the checks of a device."""

import collections
import dataclasses
import json
import math
import time
from typing import ClassVar

import numpy as np
import pytest
import rich.console

from experiments import data
from experiments.bench.device import check_parity, images_per_second
from experiments.config import RunConfig
from experiments.records.files import RecordWriter, read_record
from experiments.studies import cifar100_gpu
from experiments.studies.cifar100_gpu import (
    SMALL,
    GpuArguments,
    Study,
    cells,
    run_study,
)
from experiments.tuning.runner import PlannedRun
from experiments.tuning.spaces import search_space
from experiments.tuning.sweep import planned_runs


def write_record(planned, accuracy, *, kind="summary"):
    costs = {"step": 1, "gradient_equivalents": 1.0, "seconds": 0.1}
    figures = {
        f"{split}_{name}": value
        for split in ("train", "validation", "test")
        for name, value in (("loss", 1.0), ("accuracy", accuracy))
    }
    with RecordWriter(planned.path, planned.config, overwrite=True) as writer:
        for trial in planned.trials:
            writer.write("trial", trial)
        writer.write("step", {**costs, "loss": 2.0, "beta": 0.5, "cosine": 0.9})
        if kind == "stopped":
            writer.write("stopped", {"reason": "the loss became nan"})
        elif kind == "summary":
            writer.write("evaluation", {**costs, **figures})
            writer.write("summary", {**costs, **figures})


class FakeRunner:
    """Stands for training: the best rate is far up for one method, low for others."""

    ran: ClassVar[list[str]] = []

    def __init__(self, data_dir, console):
        self.longest = 0.0

    def run(self, planned):
        config = planned.config
        optimum = 1e9 if config.optimizer == "nlcg_pr+_rms" else 1e-9
        accuracy = -abs(np.log(config.learning_rate / optimum))
        kind = "stopped" if config.optimizer == "sgd" else "summary"
        write_record(planned, accuracy, kind=kind)
        self.ran.append(f"{planned.path.parent.name}/{planned.path.stem}")
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


@pytest.mark.slow
def test_the_study_runs_everything_once_in_its_order_and_reports_it(study):
    run, out = study
    complete, ran = run(math.inf)
    assert complete
    assert ran[:4] == [
        f"paper/batch_512-{name}-seed0" for name in cifar100_gpu.PAPER_OPTIMIZERS
    ]
    # Two trials of three methods, the best of which are on an edge, so two more.
    assert [name.partition("/")[0] for name in ran[4:]] == [
        *["trials"] * 3 * (2 + 2),
        *["finals"] * 3,
        *["paper"] * 4,
    ]
    assert len(ran) == len(set(ran)) == 23
    tuned = out / "tuned"
    rates = [
        read_record(tuned / f"trials/batch_512-nlcg_pr+_rms-trial0{k}.jsonl")
        for k in range(4)
    ]
    greatest = max(record.config.learning_rate for record in rates[:2])
    final = read_record(tuned / "finals/batch_512-nlcg_pr+_rms-seed10.jsonl").config
    assert final.learning_rate == rates[3].config.learning_rate == 4 * greatest
    assert final.validation_examples == 500
    # The report of each table holds the runs of no other.
    for name, lines in (("paper", 8), ("tuned", 3)):
        text = (out / name / "report.md").read_text(encoding="utf-8")
        assert f"from {lines} records" in text
    assert run(math.inf) == (True, [])


def test_the_whole_study_is_as_long_as_it_says(tmp_path):
    folders = collections.Counter()
    for planned in cells(Study(), tmp_path):
        # The greatest rate is the best, on the edge.
        write_record(planned, planned.config.learning_rate)
        folders[planned.path.parent.name] += 1
    assert folders == {"paper": 12 + 24, "trials": 9 * (4 + 2), "finals": 9 * 3}
    assert folders.total() == 117


def test_the_recommended_nlcg_and_its_rivals_have_equal_budgets():
    sweep = cifar100_gpu.tuned_sweep(Study(), 16384)
    assert [config.optimizer for config in sweep.configs] == list(cifar100_gpu.METHODS)
    assert {len(search_space(c.optimizer).dimensions) for c in sweep.configs} == {4}
    assert sweep.dimensions == ("learning_rate", "memory", "decay")
    assert sweep.criterion == "validation_accuracy"
    first = next(planned_runs(sweep, cifar100_gpu.Path("out"))).config
    assert (first.optimizer, first.batch_size) == ("nlcg_pr+_kronecker", 16384)
    assert first.optimizer_options["beta_smoothing"] == 0.9
    assert 0.8 <= first.optimizer_options["beta_max"] <= 0.99
    assert (first.schedule, first.warmup_epochs) == ("cosine", 25)
    assert first.validation_examples == 5000


def test_a_call_ends_in_time_and_the_next_goes_on(study, monkeypatch):
    monkeypatch.setattr(cifar100_gpu, "write_reports", lambda out, console: None)
    run, out = study
    complete, first = run(0.4)
    assert not complete
    assert len(first) == 1
    # Of a run that was killed there is a record without an end: it is repeated.
    second = next(c for c in cells(SMALL, out) if not c.path.exists())
    write_record(second, 0.0, kind="unfinished")
    complete, rest = run(60)
    assert complete
    assert rest[0] == f"paper/{second.path.stem}"
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


def test_a_path_that_cannot_be_ends_the_command_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100_gpu, "Runner", FakeRunner)
    monkeypatch.setattr(cifar100_gpu, "_check", lambda *arguments: None)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: .*Not a directory: .*file/paper"):
        cifar100_gpu.main([f"--out={tmp_path / 'file'}", "--seconds=inf"])


@pytest.mark.slow
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
        cell = PlannedRun(
            dataclasses.replace(config, learning_rate=rate), tmp_path / f"{rate}.jsonl"
        )
        runner.run(cell)
        assert cifar100_gpu.finished(cell) is not None
    assert "images/s" in (told := console.export_text())
    assert "diverged" in told
    assert json.loads(cell.path.read_text().splitlines()[0])["seed"] == 0
