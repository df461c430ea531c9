"""The study at the paper's own size: its steps, its order, its choices, its table."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from experiments import data, models
from experiments.studies.cifar100 import device_checks, paper_size
from experiments.studies.cifar100.paper_size import (
    CPU,
    GPU,
    HALF,
    SHALLOW,
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


@pytest.mark.parametrize(
    ("size", "side", "micro"),
    [(CPU, 16, 256), (HALF, 16, 64), (SHALLOW, 16, 64), (GPU, 32, 1024)],
)
def test_the_steps_are_the_papers(size, side, micro):
    shape = (50_000, side, side, 3)
    images = data.Split(np.zeros(shape, np.uint8), np.zeros(50_000, int))
    program = make_program(size.config, data.Dataset(100, images, None, images))
    assert program.step.total_steps == size.steps == 610
    assert size.config.batch_size // size.config.micro_batches == micro
    first, *_ = paper_size.paper_runs(size, Path("out"))
    # 0.1 per 256 images.
    assert first.config.learning_rate == pytest.approx(6.4)
    assert first.config.schedule == "paper"
    # The method that anneals by itself gets the same number of steps and no schedule.
    untouched = paper_size.untouched_run(size, Path("out")).config
    assert untouched.optimizer_options["num_steps"] == 610
    assert (untouched.learning_rate, untouched.schedule) == (1.0, "constant")


@pytest.mark.parametrize("name", ["paper", "gpu"])
def test_the_untouched_and_the_best_three_run_at_full_length(
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
        "tuning_free_nlcg",
        "large_batch_nlcg",
        "muon",
        "shampoo",
        "muon",  # the best baseline, at a sixteenth of the batch
    ]
    assert long[-1].startswith("batch_4-")
    others = paper_size.runs_at_other_rates(SMALL_SIZES[name], tmp_path)
    assert [run.path for run in others] == runner.ran[-6:]
    full = paper_size.long_runs(SMALL_SIZES[name], tmp_path)
    assert [run.path.name for run in others] == 2 * [run.path.name for run in full]
    factors = [
        run.config.learning_rate / tuned.config.learning_rate
        for run, tuned in zip(others, 2 * full, strict=True)
    ]
    assert factors == [0.5] * 3 + [2.0] * 3
    text = paper_size.write_table(tmp_path)
    assert (tmp_path / "paper_size.md").read_text(encoding="utf-8") == text
    assert text.count("the paper's") == len(paper_size.PAPER_ROWS)
    assert text.count("| tuned |") == len(long) - 1
    assert text.count("| tuned, half the rate |") == 3
    assert text.count("| tuned, twice the rate |") == 3
    assert text.count("| untouched |") == 1


def test_with_the_small_network_the_tuned_rows_come_first(tmp_path):
    runner = FakeRunner(lambda config: LOSSES.get(config.optimizer, 0.0))
    planned = stages(SMALL_SIZES["paper_resnet8"], tmp_path, runner)
    assert run_study(planned, runner, rich.console.Console(file=io.StringIO()))
    folders = [path.relative_to(tmp_path).parts[0] for path in runner.ran]
    assert list(dict.fromkeys(folders)) == [
        *("search", "long", "small_batch", "halved", "doubled", "paper")
    ]
    assert len(set(runner.ran)) == len(runner.ran)
    long = [path.stem for path in runner.ran if path.parent.name == "long"]
    assert "batch_64-tuning_free_nlcg,num_steps=20-seed10" in long[:4]


def test_the_table_has_the_runs_that_have_ended(tmp_path):
    runner = FakeRunner(lambda config: 1.0, stop_after=3)
    planned = stages(SMALL_SIZES["paper_half"], tmp_path, runner)
    with pytest.raises(KeyboardInterrupt):
        run_study(planned, runner, rich.console.Console(file=io.StringIO()))
    assert len(list((tmp_path / "paper").glob("*.jsonl"))) == 4
    text = paper_size.write_table(tmp_path)
    assert text.count("the paper's") == 3
    assert "diverged" not in text


def test_half_the_filters_are_a_quarter_of_the_parameters():
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)

    def count(size):
        model = models.build(size.config.model, 100)
        variables = jax.eval_shape(
            lambda key, x: model.init(key, x, train=False), jax.random.key(0), images
        )
        return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    # The number of weights of a convolution is quadratic in the width; that of the
    # last layer and of the normalizations, a fiftieth of all, is linear.
    assert (count(CPU), count(HALF)) == (472_820, 120_556)
