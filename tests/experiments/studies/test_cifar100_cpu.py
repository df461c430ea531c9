"""The CPU study: its order, how it goes on after a stop, and its reports."""

import errno
import json
import os

import pytest
import rich.console

from experiments.records.files import RecordWriter, read_record
from experiments.studies import cifar100_cpu
from experiments.studies.cifar100_cpu import (
    SMALL,
    Study,
    paper_runs,
    run_study,
    swap_runs,
    tuned_sweep,
    write_reports,
)
from experiments.training import DivergedError


class FakeRunner:
    """Stands for training; the greater the learning rate, the better."""

    def __init__(self):
        self.ran, self.paths, self.compiled = [], [], {}

    def run(self, planned):
        self.ran.append(planned.path.stem)
        self.paths.append(planned.path)
        config = planned.config
        with RecordWriter(planned.path, config, overwrite=True) as writer:
            for trial in planned.trials:
                writer.write("trial", trial)
            costs = {"step": 1, "gradient_equivalents": 1.0, "seconds": 0.1}
            writer.write("step", {**costs, "loss": 2.0, "beta": 0.25, "cosine": 1.0})
            writer.write("step", {**costs, "loss": 2.0, "beta": 0.75, "cosine": 1.0})
            accuracies = dict.fromkeys(
                ("train_accuracy", "validation_accuracy", "test_accuracy"),
                config.learning_rate,
            )
            losses = {"train_loss": 1.0, "validation_loss": 1.0, "test_loss": 1.0}
            writer.write("evaluation", {**costs, **accuracies, **losses})
            # A time of its own for each program.
            program = config.optimizer, config.batch_size
            seconds = self.compiled.setdefault(program, 2 + len(self.compiled) / 8)
            compiled = {"compile_seconds": seconds}
            writer.write("summary", {**costs, **accuracies, **losses, **compiled})

    def dataset(self, config):
        return None


class DivergingRunner(FakeRunner):
    def run(self, planned):
        raise DivergedError("the loss is not finite")


class FullDisk(FakeRunner):
    def run(self, planned):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fake_swap(path, config, dataset):
    figures = {"test_accuracy": 0.5}
    line = {
        "config": {"optimizer": config.large.optimizer},
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


@pytest.mark.slow
def test_the_study_runs_everything_once_and_reports_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100_cpu, "record_swap", fake_swap)
    runner = FakeRunner()
    run_study(SMALL, tmp_path, runner)
    paper = [
        f"batch_{s}-{name}-seed0"
        for s in (32, "full")
        for name in cifar100_cpu.PAPER_OPTIMIZERS
    ]
    assert runner.ran[:8] == paper
    # Two trials of two methods, the best of which lie on an edge, so two more; a final.
    # All that once more for two methods with the mean of beta.
    assert len(runner.ran) == 8 + 2 * (2 * 2 * (2 + 2) + 2 * 2)
    assert len(set(runner.paths)) == len(runner.paths)
    for optimizer, option in cifar100_cpu.CONSTANT_MEMORY.items():
        name = f"mean_beta/finals/batch_32-{optimizer}-seed10.jsonl"
        options = read_record(tmp_path / name).config.optimizer_options
        assert options[option] == 0.5
    assert [p.name for p in (tmp_path / "swap").iterdir()] == [
        "batch_32-nesterov-seed10.json"
    ]
    run_study(SMALL, tmp_path, again := FakeRunner())
    assert not again.ran
    console = rich.console.Console(file=open("/dev/null", "w"))  # noqa: SIM115
    write_reports(SMALL, tmp_path, console)
    console.file.close()
    # A tenth of a second each run, each program once, and the phases of SWAP.
    assert 1 < len(runner.compiled) < len(runner.paths)
    assert cifar100_cpu.training_seconds(SMALL, tmp_path) == pytest.approx(
        0.1 * len(runner.paths) + sum(runner.compiled.values()) + 12.5
    )
    for folder in ("paper", "tuned", "mean_beta"):
        assert (tmp_path / folder / "report.md").exists()
        assert (tmp_path / folder / "batch_sizes.png").exists()
    assert (tmp_path / "swap.md").read_text(encoding="utf-8").splitlines()[2] == (
        "| Nesterov | 50.0 [50.0, 50.0] | 55.0 [55.0, 55.0] | 70.0 [70.0, 70.0] "
        "| 3 + 4 | 2.0 + 4.0 |"
    )


def test_the_papers_recipe_and_the_equal_budgets(tmp_path):
    study = Study()
    runs = list(paper_runs(study, tmp_path))
    assert len(runs) == 3 * 4 * 3
    rates = {run.config.batch_size: run.config.learning_rate for run in runs}
    assert rates == pytest.approx({256: 0.1, None: 0.4, 32: 0.0125})
    assert {run.config.schedule for run in runs} == {"paper"}
    sweep = tuned_sweep(study, None)
    assert {c.optimizer for c in sweep.configs} == set(study.optimizers)
    assert sweep.configs[0].micro_batches == 4
    assert sweep.criterion == "validation_accuracy"
    assert sweep.configs[0].train_examples == 1024


def test_swap_needs_the_tuned_runs_first(tmp_path):
    with pytest.raises(FileNotFoundError):
        next(swap_runs(Study(), tmp_path))


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        (DivergingRunner, "error: the loss is not finite"),
        (FullDisk, "error: .*No space left on device"),
    ],
)
def test_what_goes_wrong_ends_the_command_with_a_message(
    runner, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(cifar100_cpu, "Runner", lambda data_dir, console: runner())
    with pytest.raises(SystemExit, match=message):
        cifar100_cpu.main([f"--out={tmp_path}"])


def test_without_data_the_command_says_what_to_run(tmp_path):
    with pytest.raises(SystemExit, match=r"error: [^\n]*; run\n  python -m experim"):
        cifar100_cpu.main([f"--data-dir={tmp_path}", f"--out={tmp_path}"])
