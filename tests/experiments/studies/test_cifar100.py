"""The CIFAR-100 study: its order, its numbers, resumption, reports, device checks."""

import collections
import dataclasses
import errno
import io
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import rich.console

from experiments.bench.device import check_parity, images_per_second
from experiments.config import RunConfig
from experiments.records.files import read_record
from experiments.records.json_file import write_json
from experiments.studies.cifar100 import __main__ as command
from experiments.studies.cifar100 import device_checks, plan
from experiments.studies.cifar100.plan import paper_runs, stages, tuned_sweep
from experiments.studies.cifar100.sizes import (
    CPU,
    ORTHOGONAL,
    RMS,
    SMALL,
)
from experiments.swap.config import SwapConfig
from experiments.training import Report
from experiments.tuning.study import run_study
from tests.experiments.tuning.fake_runner import FakeRunner

PAPER = ("sgd", "heavy_ball", "rmsprop", "paper_nlcg")


def loss_of(config):
    """The best rate is far up for one method, far down for the others; SGD diverges."""
    if config.optimizer == "sgd" and config.schedule == "paper":
        return math.nan
    rms = config.optimizer_options.get("preconditioner") == "rms"
    return abs(math.log(config.learning_rate / (1e9 if rms else 1e-9)))


def fake_swap(path, config, dataset):
    figures = {"test_accuracy": 0.5}
    line = {
        "config": dataclasses.asdict(config.large),
        "small": dataclasses.asdict(config.small),
        "large": figures,
        "after_workers": [figures, {"test_accuracy": 0.6}],
        "averaged": {"test_accuracy": 0.7},
        "large_steps": 3,
        "small_steps": 4,
        "large_epochs": 2.0,
        "worker_epochs": 4.0,
        "seconds": [8.0, 4.0, 0.5],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(line), encoding="utf-8")
    return line


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs a size of the study with training and SWAP replaced."""
    monkeypatch.setattr(plan, "record_swap", fake_swap)

    def run(size, runner=None):
        runner = runner or FakeRunner(loss_of)
        console = rich.console.Console(file=io.StringIO())
        assert run_study(stages(size, tmp_path, runner), runner, console)
        return [path.relative_to(tmp_path).with_suffix("") for path in runner.ran]

    return run


def test_the_small_cpu_study_runs_everything_once(study, tmp_path):
    size = SMALL
    ran = study(size)
    assert [str(name) for name in ran[:4]] == [
        f"paper/batch_32-{name}-seed0" for name in PAPER
    ]
    # Two trials of two methods, the best of which lie on an edge, so two more; a final.
    # All of that again for two methods with the mean of β.
    assert collections.Counter(name.parts[0] for name in ran) == {
        "paper": 8,
        "tuned": 2 * (2 * (2 + 2) + 2),
        "mean_beta": 2 * (2 * (2 + 2) + 2),
    }
    assert len(set(ran)) == len(ran)
    finals = tmp_path / "mean_beta/finals"
    constant = "rule=constant,beta=0.5"
    for name in (
        "batch_32-muon,momentum=0.5-seed10.jsonl",
        f"batch_full-nlcg,preconditioner=orthogonal,{constant}-seed10.jsonl",
    ):
        assert read_record(finals / name).config.dataset == "cifar100"
    swaps = [path.name for path in (tmp_path / "swap").iterdir()]
    assert swaps == ["batch_32-nesterov-seed10.json"]
    assert study(size) == []
    other = dataclasses.replace(size, worker_epochs=2)
    with pytest.raises(ValueError, match="json is the record of another configuration"):
        study(other)


def test_a_swap_with_another_end_of_its_first_phase_is_refused(tmp_path):
    config = SwapConfig(workers=2, stop_epoch=3)
    path = tmp_path / "swap.json"
    fake_swap(path, config, None)
    longer = dataclasses.replace(config, stop_epoch=5)
    plan.refuse_another_swap(path, longer)  # an earlier record does not say
    earlier = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**earlier, "workers": 2})
    plan.refuse_another_swap(path, longer)
    write_json(path, {**earlier, **config.settings()})
    plan.refuse_another_swap(path, config)
    message = r"json is the record of another configuration: stop_epoch=5 was 3; use"
    with pytest.raises(ValueError, match=message):
        plan.refuse_another_swap(path, longer)


def test_checks_of_a_device_that_are_not_complete_are_made_again(tmp_path, monkeypatch):
    class Found(NamedTuple):
        compute_dtype: str
        loss_difference: float = 0.0
        gradient_difference: float = 0.0

    monkeypatch.setattr(device_checks, "check_parity", lambda *args: Found(args[-1]))
    monkeypatch.setattr(device_checks, "images_per_second", lambda *_: 1.0)
    monkeypatch.setattr(device_checks, "measure", lambda *_, **__: [])
    write_text = Path.write_text

    def killed(path, text, **settings):
        write_text(path, text[:9], **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    job = device_checks.device_checks(
        RunConfig(), tmp_path, FakeRunner(loss_of), small=True
    )
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert not job.path.exists()


@pytest.mark.slow
def test_the_reports_hold_their_tables_and_the_time_of_all_runs(study, tmp_path):
    size, runner = SMALL, FakeRunner(loss_of)
    study(size, runner)
    console = rich.console.Console(file=io.StringIO())
    command.write_reports(size, tmp_path, console)
    for folder, records in (("paper", 8), ("tuned", 4), ("mean_beta", 6)):
        text = (tmp_path / folder / "report.md").read_text(encoding="utf-8")
        assert f"from {records} runs" in text
        assert (tmp_path / folder / "finals.png").exists()
    row = (tmp_path / "swap.md").read_text(encoding="utf-8").splitlines()[2]
    assert row.startswith("| Nesterov, momentum 0.")
    assert row.endswith(
        " | 50.0 [50.0, 50.0] | 55.0 [55.0, 55.0] | 70.0 [70.0, 70.0] | 3 + 4 "
        "| 2.0 + 4.0 |"
    )
    # A tenth of a second per run, each program once, and the phases of SWAP.
    summaries = [read_record(path).summary for path in runner.ran]
    compiled = {s["compile_seconds"] for s in summaries if s is not None}
    assert 1 < len(compiled) < len(runner.ran)
    assert command.training_seconds(tmp_path) == pytest.approx(
        0.1 * len(runner.ran) + sum(compiled) + 12.5
    )


def test_the_best_rate_beyond_the_edge_is_chosen(study, tmp_path):
    study(
        dataclasses.replace(
            SMALL, methods=(ORTHOGONAL, RMS), constant_memory=False, swap_methods=()
        )
    )
    stem = "batch_32-nlcg,preconditioner=rms"
    rates = [
        read_record(tmp_path / f"tuned/trials/{stem}-trial0{k}-seed0.jsonl")
        for k in range(4)
    ]
    greatest = max(record.config.learning_rate for record in rates[:2])
    final = read_record(tmp_path / f"tuned/finals/{stem}-seed10.jsonl").config
    assert final.learning_rate == rates[3].config.learning_rate == 4 * greatest
    assert final.validation_examples == 64


def test_nlcg_and_its_rivals_have_equal_budgets():
    sweep = tuned_sweep(CPU, 256)
    assert [m.config.optimizer for m in sweep.methods] == [m.name for m in CPU.methods]
    assert {len(m.searches[0]) for m in sweep.methods} == {4}
    assert sweep.criterion == "validation_accuracy"
    first = sweep.methods[0]
    assert (first.config.optimizer, first.config.optimizer_options) == RMS
    assert all(0.8 <= point["beta_max"] <= 0.99 for point in first.searches[0])
    assert (first.config.schedule, first.config.warmup_epochs) == ("cosine", 3)


def test_the_papers_recipe_on_a_cpu(tmp_path):
    runs = [run for b in CPU.batch_sizes for run in paper_runs(CPU, b, tmp_path)]
    assert len(runs) == 3 * 4 * 3
    rates = {run.config.batch_size: run.config.learning_rate for run in runs}
    assert rates == pytest.approx({256: 0.1, None: 0.4, 32: 0.0125})
    full = tuned_sweep(CPU, None).methods[0].config
    assert (full.micro_batches, full.train_examples, full.classes) == (4, 1024, 10)
    assert (full.halved_images, full.validation_examples) == (True, 2000)
    assert full.warmup_epochs == pytest.approx(3)


def raises(error):
    def run(planned):
        raise error

    runner = FakeRunner(loss_of)
    runner.run = run
    return runner


def test_a_full_disk_ends_the_command_with_a_message(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(command, "Runner", lambda data_dir, **_: raises(full))
    with pytest.raises(SystemExit, match=r"error: .*No space left on device"):
        command.main([f"--out={tmp_path}"])


def test_an_interrupted_study_prints_the_line_that_resumes_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        command, "Runner", lambda data_dir, **_: raises(KeyboardInterrupt())
    )
    with pytest.raises(SystemExit) as ended:
        command.main(["--small", f"--out={tmp_path}"])
    assert ended.value.code == 130
    line = (
        f"resume with: python -m experiments.studies.cifar100 --small --out={tmp_path}"
    )
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_without_data_the_command_says_what_to_run(size, tmp_path):
    with pytest.raises(SystemExit, match=r"error: [^\n]*; run\n  python -m experim"):
        command.main(
            [f"--size={size}", f"--data-dir={tmp_path}", f"--out={tmp_path / 'out'}"]
        )


@pytest.mark.slow
def test_a_cpu_agrees_with_itself_and_bfloat16_nearly(few_digits):
    config = RunConfig(model="mlp")
    same = check_parity(config, few_digits, "float32")
    assert same.loss_difference == same.gradient_difference == 0
    rough = check_parity(config, few_digits, "bfloat16")
    assert 0 < rough.loss_difference < 0.05
    assert 0 < rough.gradient_difference < 0.2


def test_throughput_counts_the_images_of_the_reports_after_the_first(
    few_digits, monkeypatch
):
    def run_epochs(compiled, config, dataset, state):
        assert config.epochs == 3
        for steps, seconds in ((8, 100.0), (8, 0.5), (6, 1.5)):
            yield Report(1, state, {"loss": [0.0] * steps}, seconds)

    monkeypatch.setattr("experiments.bench.device.run_epochs", run_epochs)
    config = RunConfig(model="mlp", optimizer="sgd", batch_size=16, epochs=1)
    assert images_per_second(config, few_digits) == 14 * 16 / 2
