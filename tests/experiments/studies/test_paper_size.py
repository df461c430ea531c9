"""The study at the paper's own size: its steps, its order, its choices, its table."""

import io
from pathlib import Path

import numpy as np
import pytest
import rich.console

from experiments import data
from experiments.studies.cifar100 import device_checks, paper_size
from experiments.studies.cifar100.paper_size import (
    CPU,
    GPU,
    SMALL_SIZES,
    stages,
)
from experiments.training import make_program
from experiments.tuning.study import run_study
from tests.experiments.tuning.fake_runner import FakeRunner

# Validation accuracy is minus the loss, so the least of these is the best.
LOSSES = {
    "paper_nlcg": 5.0,
    "heavy_ball": 3.0,
    "lars": 4.0,
    "muon": 1.0,
    "shampoo": 2.0,
    "large_batch_nlcg": 0.5,
}


def fake_check(config, path, runner, small):
    assert (config.optimizer, small) == ("paper_nlcg", True)
    path.write_text("{}")
    return "no difference"


@pytest.mark.parametrize(("size", "side", "micro"), [(CPU, 16, 256), (GPU, 32, 1024)])
def test_the_steps_are_the_papers(size, side, micro):
    shape = (50_000, side, side, 3)
    images = data.Split(np.zeros(shape, np.uint8), np.zeros(50_000, int))
    program = make_program(size.config, data.Dataset(100, images, None, images))
    assert program.step.total_steps == 610
    assert size.config.batch_size // size.config.micro_batches == micro
    first, *_ = paper_size.paper_runs(size, Path("out"))
    # 0.1 per 256 images.
    assert first.config.learning_rate == pytest.approx(6.4)
    assert first.config.schedule == "paper"


@pytest.mark.parametrize("name", ["paper", "gpu"])
def test_the_best_three_and_the_untouched_run_at_full_length(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(device_checks, "_check", fake_check)
    runner = FakeRunner(lambda config: LOSSES.get(config.optimizer, 0.0))
    console = rich.console.Console(file=io.StringIO())
    assert run_study(stages(SMALL_SIZES[name], tmp_path, runner), runner, console)
    assert (tmp_path / "checks.json").exists() == (name == "gpu")
    ran = [str(path.relative_to(tmp_path).with_suffix("")) for path in runner.ran]
    assert len(set(ran)) == len(ran)
    assert [name for name in ran if name.startswith("paper/")][:2] == [
        "paper/batch_64-paper_nlcg,rule=fr-seed10",
        "paper/batch_64-sgd-seed10",
    ]
    long = [name.removeprefix("long/") for name in ran if name.startswith("long/")]
    assert [name.split(",")[0].split("-")[1] for name in long] == [
        "large_batch_nlcg",
        "muon",
        "shampoo",
        "tuning_free_nlcg",
        "muon",  # the best baseline, at a sixteenth of the batch
    ]
    assert long[-1].startswith("batch_4-")
    text = paper_size.write_table(tmp_path)
    assert (tmp_path / "paper_size.md").read_text(encoding="utf-8") == text
    assert text.count("the paper's") == len(paper_size.PAPER_ROWS)
    assert text.count("| tuned |") == len(long)
