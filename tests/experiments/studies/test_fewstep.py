import dataclasses

import numpy as np
import pytest

from experiments.config import RunConfig
from experiments.optimizers import build
from experiments.records.files import RunRecord
from experiments.report.cells import Cell
from experiments.studies.fewstep import __main__ as fewstep
from experiments.studies.fewstep.plan import (
    MOMENTA,
    Method,
    config_of,
    full_study,
    small_study,
)
from experiments.studies.fewstep.report import (
    best_baseline,
    smoothed_losses,
    steps_to,
    table,
)
from experiments.studies.fewstep.runner import cells


def record(optimizer, losses, seed=0, **figures):
    summary = {
        "train_loss": losses[-1],
        "validation_accuracy": 0.5,
        "seconds": 1.0,
        **figures,
    }
    steps = [
        {"loss": loss, "gradient_equivalents": 2.0 * (t + 1)}
        for t, loss in enumerate(losses)
    ]
    config = RunConfig(optimizer=optimizer, seed=seed)
    return RunRecord(config, {}, [], steps, [], summary, None)


def cell(optimizer, *losses):
    return Cell(tuple(record(optimizer, x, seed) for seed, x in enumerate(losses)))


def test_every_method_of_the_study_can_be_built_and_tuned_ones_have_equal_trials():
    for with_images in (True, False):
        study = full_study(with_images=with_images)
        for task in study.tasks:
            assert all(task.examples % divisor == 0 for divisor in task.batches)
            assert all(study.steps % divisor == 0 for divisor in task.batches)
            for method in task.methods:
                variants = method.variants()
                assert len(variants) == (len(MOMENTA) if method.momentum else 1)
                for options in variants:
                    assert build(method.optimizer, 0.1, options).transformation
                config = config_of(
                    study,
                    task,
                    task.batches[-1],
                    method,
                    options=method.variants()[0],
                    learning_rate=method.centre,
                    seed=3,
                )
                examples = config.epochs * task.examples
                assert examples == study.steps * config.batch_size


def test_the_first_cell_is_a_trial_at_the_batch_size_of_its_part(tmp_path):
    study = dataclasses.replace(small_study(), tasks=small_study().tasks[:1])
    first = next(iter(cells(study, tmp_path)))
    assert first.path.parent.name == "search"
    assert first.config.batch_size == 256
    assert first.config.epochs * 4 == study.steps


def test_steps_to_the_loss_of_the_best_baseline():
    falling = np.linspace(2.0, 0.2, 10)
    peer = cell("muon", falling, falling + 0.3, falling - 0.3)
    worse = cell("sgd", falling + 1.0)
    faster = cell("nlcg_fr", falling - 0.4)
    diverged = cell("adam", [*falling[:6], np.nan])
    np.testing.assert_allclose(smoothed_losses(peer)[4:], falling[2:8], atol=1e-12)
    assert not np.isfinite(smoothed_losses(diverged)[-1])
    assert best_baseline([worse, faster, peer, diverged]) is peer
    target = smoothed_losses(peer)[-1]
    assert steps_to(peer, target) == 10
    assert steps_to(faster, target) == 8  # .2 lower a step: two steps earlier
    assert steps_to(worse, target) is None
    lines = table([worse, faster, peer]).splitlines()
    assert lines[2].split("|")[1].strip() == "NLCG FR (one trial)"
    assert [part.strip() for part in lines[2].split("|")[5:8]] == ["8", "0.80", "16"]
    assert lines[3].split("|")[1].strip() == "**Muon**"


def test_unknown_tasks_are_named():
    given = fewstep.FewStepArguments(tasks=("other",), small=True)
    with pytest.raises(ValueError, match="tasks=.'other'. are unknown; allowed are"):
        fewstep.run(given, None)


def test_without_a_record_there_is_no_report(tmp_path):
    with pytest.raises(SystemExit, match="holds no record of this study"):
        fewstep.main(["--small", "--report-only", "--out", str(tmp_path)])


@pytest.mark.slow
def test_the_small_study_runs_reports_and_is_not_repeated(tmp_path, capsys):
    given = ["--small", "--out", str(tmp_path), "--tasks", "noise"]
    fewstep.main(given)
    first = capsys.readouterr().out
    assert "run 1:" in first
    text = (tmp_path / "report.md").read_text()
    assert "NLCG PR+ · orthogonal, across halves 1" in text
    assert (tmp_path / "curves_noise.png").stat().st_size > 1000
    fewstep.main(given)
    assert "run 1:" not in capsys.readouterr().out


def test_variants_of_momentum():
    assert [v["b1"] for v in Method("adam", 0.1, momentum="b1").variants()] == [
        *MOMENTA
    ]
