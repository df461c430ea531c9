"""The whole command at small size, on synthetic speech."""

import csv
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.keyword_spotting import __main__ as command
from experiments.keyword_spotting import phases, report
from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.model import FrameNetwork
from experiments.keyword_spotting.plan import BASELINES, NLCG, Plan, check_settings
from experiments.keyword_spotting.training import hinges
from experiments.records.files import origin

SMALL = {
    "keyword": "up",
    "fractions": "0.5 0.25 0.25",
    "keyword-variants": 2,
    "variants": 1,
    "validation-passes": 1,
    "test-passes": 1,
    "context": 3,
    "width": 8,
    "depth": 1,
    "positives": 10,
    "windows": 8,
    "mined": 8,
    "window-frames": 50,
    "batch-size": 8,
    "epochs": 2,
    "rounds": 1,
}


def arguments(source, out, **changes):
    settings = {**SMALL, **changes}
    pairs = [f"--config.{name} {value}" for name, value in settings.items()]
    text = f"--small --source {source} --out {out} {' '.join(pairs)}"
    return text.split()


@pytest.fixture(scope="module")
def out(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    command.main(arguments(source, folder))
    return folder


def test_the_study_leaves_records_and_a_report(out):
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert {
        "prepared.npz",
        "seed0.npz",
        "cross_entropy-seed0.json",
        "longer_cross_entropy-seed0.json",
        "adam-seed0.json",
        "minimize-seed0.json",
        "no_hard_negatives-seed0.json",
        "report.md",
        "runs.csv",
        "trade_off.png",
    } <= names
    line = json.loads((out / "finals" / "adam-seed0.json").read_text("utf-8"))
    costs = [report["gradient_equivalents"] for report in line["reports"]]
    assert costs == [2.0, 4.0]
    assert line["config"]["optimizer"] == "adam"
    assert "model" not in line["config"]  # the study's, in settings.json
    frames = json.loads(
        (out / "finals" / "cross_entropy-seed0.json").read_text("utf-8")
    )
    assert frames["config"]["schedule"] == "cosine"
    assert frames["config"]["learning_rate"] == phases.RATE
    least = json.loads((out / "finals" / "minimize-seed0.json").read_text("utf-8"))
    assert least["config"] == {"optimizer": "minimize"}
    assert line["test"]["keywords"] == 6
    assert line["config"]["variant"]["hard_negatives"]
    path = out / "ablations" / "no_hard_negatives-seed0.json"
    without = json.loads(path.read_text("utf-8"))["config"]["variant"]
    assert without == {**line["config"]["variant"], "hard_negatives": False}
    for path in (out / "prepared.npz", out / "cross_entropy" / "seed0.npz"):
        with np.load(path) as arrays:
            assert json.loads(str(arrays["origin"])) == origin()
    losses = [report["loss"] for report in line["reports"]]
    assert losses[1] < losses[0]
    text = (out / "report.md").read_text("utf-8")
    assert "| cross-entropy | 1 |" in text
    assert "| minimize |" in text
    rows = list(csv.DictReader((out / "runs.csv").read_text("utf-8").splitlines()))
    row = next(row for row in rows if row["trained_by"] == "Adam")
    rejects = line["test"]["rejects"]
    assert float(row["test_rejects_at_5_per_hour"]) == pytest.approx(
        rejects[1], abs=1e-4
    )


def test_a_finished_study_is_not_repeated(source, out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    command.main(arguments(source, out))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_there_must_be_records_to_report(tmp_path):
    given = ["--small", "--report-only", f"--out={tmp_path / 'none'}"]
    with pytest.raises(SystemExit, match="none' holds no records; run the study"):
        command.main(given)
    # The folder stays free for any study.
    assert not (tmp_path / "none").exists()


def test_corrupt_files_of_a_study_are_named(source, out, tmp_path):
    shutil.copytree(out, tmp_path / "copy")
    for name in ("prepared.npz", "finals/adam-seed0.json", "settings.json"):
        path = tmp_path / "copy" / name
        path.write_bytes(b"nothing")
        (tmp_path / "copy" / "finals" / "minimize-seed0.json").unlink(missing_ok=True)
        with pytest.raises(SystemExit, match=f"error: .*{name} is corrupt .*remove it"):
            command.main(arguments(source, tmp_path / "copy"))
        shutil.copy(out / name, path)


def test_another_study_is_refused(source, out):
    with pytest.raises(SystemExit, match="width=9 was 8"):
        command.main(arguments(source, out, width=9))


def test_a_folder_keeps_the_data_set_of_its_study(tmp_path):
    plan = Plan(KeywordConfig(), tmp_path)
    check_settings(plan)
    (tmp_path / "prepared.npz").touch()
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text("utf-8"))
    # Earlier studies did not write it.
    assert settings["config"].pop("dataset") == "speech_commands_test"
    path.write_text(json.dumps(settings), "utf-8")
    check_settings(plan)
    other = Plan(KeywordConfig(dataset="speech_commands"), tmp_path)
    with pytest.raises(ValueError, match="dataset='speech_commands' was 'speech_comm"):
        check_settings(other)


def test_what_is_not_prepared_says_what_to_run_and_binds_no_folder(tmp_path):
    for dataset in ("speech_commands_test", "speech_commands"):
        given = f"--data-dir {tmp_path} --out {tmp_path}/out --config.dataset {dataset}"
        with pytest.raises(SystemExit, match=f"experiments.data.prepare {dataset} --"):
            command.main(given.split())


@pytest.mark.parametrize(
    ("keyword", "message"), [("stop", "the word of no clip"), ("hi", "no phonemes")]
)
def test_unknown_words_end_the_command(source, tmp_path, keyword, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments(source, tmp_path, keyword=keyword))
    assert message in f"{ended.value} {capsys.readouterr()}"


def test_hinges_of_scores():
    scores = np.array([0.4, 3.0, 0.4, -3.0])
    logits = np.stack([-scores / 2, scores / 2], axis=-1).astype(np.float32)
    found = hinges(logits, np.array([1, 1, 0, 0]), 0.0)
    np.testing.assert_allclose(found, [0.6, 0.0, 1.4, 0.0], atol=1e-6)


def test_the_network_sees_the_context_of_a_frame():
    network = FrameNetwork(classes=3, context=3, width=4, depth=1)
    features = np.random.default_rng(0).normal(size=(1, 11, 2)).astype(np.float32)
    params = network.init(jax.random.key(0), features)
    logits = network.apply(params, features)
    assert logits.shape == (1, 5, 3)
    alone = network.apply(params, features[:, 3:10])
    np.testing.assert_allclose(alone[:, 0], logits[:, 3], rtol=1e-5, atol=1e-6)


def test_cost_to_a_target():
    def line(*losses):
        return {
            "reports": [
                {"gradient_equivalents": 2.0 * n, "loss": loss, "validation": [1, loss]}
                for n, loss in enumerate(losses, start=1)
            ]
        }

    group = [line(3.0, 2.0, 1.0), line(3.0, 1.0, 0.0)]
    assert report.cost_to(group, "loss", 1.5) == 4.0
    assert report.cost_to(group, "validation", 0.5) == 6.0
    assert report.cost_to(group, "loss", 0.4) is None


def test_all_methods_are_given_the_same_budget():
    plan = Plan(KeywordConfig(), Path(), budget=37, reports=12)
    for method in (*BASELINES, *NLCG):
        run = plan.run_config(method, 1.0, 0)
        assert (run.epochs, run.epochs_per_report) == (36, 3)
    # Its step size falls by itself, over the steps of the run.
    run = plan.run_config("tuning_free_nlcg", 1.0, 0)
    assert run.optimizer_options == {"num_steps": 36}
    assert run.schedule == "constant"
