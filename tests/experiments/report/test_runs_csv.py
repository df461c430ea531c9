import csv
import dataclasses
import math

import pytest

from experiments.report.cells import group
from experiments.report.runs_csv import read_runs, write_runs
from tests.experiments.report.synthetic import record


@pytest.fixture
def records():
    figures = {"test_accuracy": 0.7, "validation_accuracy": None}
    options = {"rule": "pr+", "beta_max": 0.9, "across_halves": True, "beta": 1}
    return [
        record("sgd", [2.0, 0.3], learning_rate=0.5, seed=2, figures=figures),
        record("nlcg", [2.0, 0.2], batch_size=None, options=options, l2=1e-4),
        record("sgd", [2.0, 0.4], dataset="cifar10", model="cnn", learning_rate=0.5),
        record(
            "sgd",
            [2.0, 0.5],
            schedule="cosine",
            epochs=200,
            epochs_per_report=40,
            warmup_epochs=0.5,
            halved_images=True,
            shard_devices=None,
            data_devices=1,
        ),
    ]


def test_every_run_has_a_line_with_its_figures(records, tmp_path):
    write_runs(group(records), tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert lines[0] == {
        "optimizer": "sgd",
        "batch_size": "256",
        "options": "",
        "learning_rate": "0.5",
        "l2": "0",
        "seed": "2",
        "steps": "2",
        "train_loss": "0.3",
        "train_accuracy": "",
        "validation_accuracy": "",
        "test_loss": "",
        "test_accuracy": "0.7",
        "gradient_equivalents": "2",
        "seconds": "1",
        "dataset": "digits",
        "model": "mlp",
        "schedule": "constant",
        "epochs": "20",
        "settings": "",
        "commit": "abc",
    }
    assert lines[1]["options"] == "rule=pr+ beta_max=0.9 across_halves=True beta=1"
    assert [lines[3][name] for name in ("schedule", "epochs", "settings")] == [
        "cosine",
        "200",
        "warmup_epochs=0.5 epochs_per_report=40 data_devices=1 shard_devices=None "
        "halved_images=True",
    ]


def test_what_was_written_is_read_back(records, tmp_path):
    path = tmp_path / "runs.csv"
    replayed = {"rule": "replay", "betas": [0.5, 1, math.inf], "preconditioner": "rms"}
    records.append(record("nlcg", [2.0, 0.1], options=replayed))
    last = record("nlcg", [2.0, 0.2], options={"beta_max": math.inf})
    resumed = tuple({"step": 1, "commit": commit} for commit in ("def", "abc", "012"))
    records.append(dataclasses.replace(last, resumed=resumed))
    write_runs(group(records), path)
    for written, found in zip(group(records), group(read_runs(path)), strict=True):
        assert found.config == written.config
        assert found.records[0].commits == written.records[0].commits
        assert found.steps == written.steps
        assert found.label == written.label
        for name in ("train_loss", "test_accuracy", "seconds"):
            (value,), (expected,) = found.values(name), written.values(name)
            assert value == expected or math.isnan(value) == math.isnan(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("optimizer,", "name,"), r"runs.csv lacks the columns \['optimizer'\]"),
        (("0.5,", "half,"), r"runs.csv:2: learning_rate='half' is not a number"),
        (("0.5,", "-0.5,"), r"runs.csv:2: learning_rate=-0.5 must be"),
        ((",20,,abc", ",20,epoch=3,abc"), r"csv:2: settings='epoch=3' has .*'epoch'"),
        ((",0.7,2,", ",0.7,"), r"runs.csv:2: 20 fields are needed"),
    ],
)
def test_a_wrong_file_is_refused_by_line(records, tmp_path, change, message):
    path = tmp_path / "runs.csv"
    write_runs(group(records), path)
    text = path.read_text()
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=message):
        read_runs(path)
    path.write_text(text.partition("\n")[0] + "\n")
    with pytest.raises(ValueError, match="holds no run"):
        read_runs(path)


def test_a_file_of_an_earlier_report_is_read_without_what_it_lacks(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "optimizer,batch_size,options,learning_rate,l2,seed,steps,train_loss,"
        "train_accuracy,validation_accuracy,test_loss,test_accuracy,"
        "gradient_equivalents,seconds,commit\n"
        "sgd,full,momentum=0.9,0.5,0.0002,3,120,0.25,,,,0.7,120,21.5,abc\n"
    )
    (found,) = read_runs(path)
    assert (found.config.batch_size, found.config.seed) == (None, 3)
    assert found.config.optimizer_options == {"momentum": 0.9}
    assert found.summary["train_loss"] == 0.25
    assert found.header == {"commit": "abc"}
