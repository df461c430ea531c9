import csv
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
        "commit": "abc",
    }
    assert lines[1]["options"] == "rule=pr+ beta_max=0.9 across_halves=True beta=1"


def test_what_was_written_is_read_back(records, tmp_path):
    path = tmp_path / "runs.csv"
    write_runs(group(records), path)
    for written, found in zip(group(records), group(read_runs(path)), strict=True):
        assert found.config == written.config
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
        ((",0.7,2,", ",0.7,"), r"runs.csv:2: 15 fields are needed"),
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
