import dataclasses
import io
import math

import pytest
import rich.console

from experiments.optimizers import build
from experiments.records.files import read_record, read_records
from experiments.studies.fewstep import __main__ as fewstep
from experiments.studies.fewstep.methods import ABLATED, MOMENTA, TUNING_FREE
from experiments.studies.fewstep.plan import (
    Study,
    full_study,
    small_study,
    stages,
    sweep_of,
)
from experiments.tuning.study import run_study
from tests.experiments.tuning.fake_runner import FakeRunner


@pytest.mark.parametrize("with_images", [True, False])
def test_every_method_can_be_built_and_takes_the_steps_of_the_study(with_images):
    study = full_study(with_images=with_images)
    for task in study.tasks:
        for part in task.parts:
            assert task.examples % part == 0
            sweep = sweep_of(study, task, part, task.candidates)
            for method, candidate in zip(sweep.methods, task.candidates):
                config = method.config
                examples = config.epochs * task.examples
                assert examples == study.steps * (config.batch_size or task.examples)
                assert len(method.searches) == (
                    candidate.tuned * (len(MOMENTA) if candidate.momentum else 1)
                )
                build(config.optimizer, 0.1, config.optimizer_options)


def test_variants_of_momentum():
    task = full_study(with_images=True).tasks[0]
    sweep = sweep_of(Study((task,)), task, 3, task.candidates[:1])
    (method,) = sweep.methods
    assert method.config.batch_size == 320
    for search, momentum in zip(method.searches, MOMENTA):
        assert {point["momentum"] for point in search} == {momentum}
        rates = [point["learning_rate"] for point in search]
        assert rates == pytest.approx([0.01 * 2.0**k for k in range(-2, 3)])


def small(*candidates):
    """The small study of one task, with seven steps."""
    task = dataclasses.replace(small_study().tasks[0], candidates=candidates)
    return dataclasses.replace(small_study(), tasks=(task,), steps=8)


def run(study, out, loss_of):
    runner = FakeRunner(loss_of)
    console = rich.console.Console(file=io.StringIO())
    run_study(stages(study, out), runner, console)
    return runner, console.file.getvalue()


def test_the_ablations_use_the_recorded_beta_and_are_tuned(tmp_path):
    study = small(ABLATED, TUNING_FREE[1])
    runner, text = run(study, tmp_path, lambda config: config.learning_rate)
    # Two rates and two more for the ablated method, and for its two ablations.
    assert len(runner.ran) == (4 + 2) + 2 + 2 * (4 + 2)
    assert "20 of 20, " in text
    finals = [r.config for r in read_records(tmp_path / "main/part4/finals")]
    by_rule = {c.optimizer_options.get("rule", c.optimizer): c for c in finals}
    assert set(by_rule) == {"nlcg", "constant", "replay", "tuning_free_nlcg"}
    # The fake β is .25 and then .75 with every seed.
    assert by_rule["constant"].optimizer_options["beta"] == 0.5
    assert by_rule["replay"].optimizer_options["betas"] == [0.25, 0.75]
    assert by_rule["tuning_free_nlcg"].learning_rate == 1.0
    assert by_rule["nlcg"].learning_rate == pytest.approx(0.05 / math.sqrt(2) / 4)
    assert not run(study, tmp_path, lambda config: 1.0)[0].ran


def test_without_a_recorded_beta_there_are_no_ablations(tmp_path):
    study = small(ABLATED)
    runner, _ = run(study, tmp_path, lambda _: math.nan)
    assert len(runner.ran) == 4 + 2
    assert all("constant" not in path.stem for path in runner.ran)


def test_the_trial_of_least_training_loss_is_chosen_among_momenta(tmp_path):
    muon = small_study().tasks[0].candidates[0]

    def loss_of(config):
        distance = abs(math.log(config.learning_rate / 0.05))
        return distance + abs(config.optimizer_options["momentum"] - 0.9)

    study = dataclasses.replace(small(muon), points=3)
    runner, _ = run(study, tmp_path, loss_of)
    assert len(runner.ran) == 3 * 3 + 2
    final = read_record(runner.ran[-1]).config
    assert final.optimizer_options == {"momentum": 0.9}
    assert final.learning_rate == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--tasks", "other"], "error: tasks=.'other'. are unknown; allowed are"),
        (["--parts", "7"], r"error: parts=\[7\] are unknown; allowed are \[4, 8\]"),
        (["--extensions=-1"], "error: extensions=-1 must be at least 0"),
        (["--report-only"], "error: .*holds no record of this study"),
    ],
)
def test_wrong_input_ends_the_command_with_a_message(given, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        fewstep.main(["--small", f"--out={tmp_path}", *given])


@pytest.mark.slow
def test_the_small_study_runs_reports_and_is_not_repeated(tmp_path, capsys):
    given = ["--small", "--out", str(tmp_path), "--tasks", "noise"]
    fewstep.main(given)
    assert "6 of 6, " in capsys.readouterr().out
    text = (tmp_path / "report.md").read_text()
    assert "NLCG PR+, orthogonal, β ≤ 1, β smoothing 0, across halves" in text
    fewstep.main(given)
    assert "6 of 6 were recorded by an earlier call" in capsys.readouterr().out
