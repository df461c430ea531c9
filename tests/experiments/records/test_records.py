import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest

from experiments.config import RunConfig
from experiments.records.files import RecordWriter, read_record, read_records
from experiments.records.run import record_run
from experiments.training import DivergedError, compile_program, make_program

CONFIG = RunConfig(
    optimizer="nlcg",
    optimizer_options={"rule": "fr", "preconditioner": "secant", "refresh_period": 4},
    learning_rate=0.05,
    batch_size=16,
    epochs=4,
    epochs_per_report=2,
    seed=3,
)


@pytest.fixture(scope="module")
def recorded(few_digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "folder" / "run.jsonl"
    compiled = compile_program(make_program(CONFIG, few_digits), few_digits)
    seen = []
    summary = record_run(
        path,
        compiled,
        CONFIG,
        few_digits,
        trials=[{"learning_rate": 0.05, "validation_loss": math.inf}],
        on_report=lambda report, evaluation: seen.append(evaluation["step"]),
    )
    return path, compiled, summary, seen


def test_a_record_holds_the_run(recorded):
    path, _, summary, seen = recorded
    record = read_record(path)
    assert record.config == CONFIG
    assert record.header["seed"] == 3
    assert record.header["versions"]["jax"] == jax.__version__
    assert record.header["device"]["count"] == jax.device_count()
    assert record.summary == summary
    assert record.stopped is None
    assert record.trials == [{"learning_rate": 0.05, "validation_loss": None}]
    assert [step["step"] for step in record.steps] == list(range(16))
    assert seen == [evaluation["step"] for evaluation in record.evaluations] == [8, 16]
    # A product with the Hessian every fourth step: 1 + 2 / 4 gradients a step.
    costs = [1.5 * (step + 1) for step in range(16)]
    assert record.series("gradient_equivalents") == costs
    assert record.summary["gradient_equivalents"] == 24
    seconds = record.series("seconds")
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(record.summary["seconds"])
    assert record.series("learning_rate") == pytest.approx([0.05] * 16)
    assert {"beta", "cosine", "grad_norm", "direction_norm"} <= set(record.steps[0])


def test_a_record_is_not_overwritten_unasked(recorded, few_digits):
    path, compiled, _, _ = recorded
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"run\.jsonl' exists"):
        record_run(path, compiled, CONFIG, few_digits)
    assert path.read_bytes() == before


def test_a_run_that_diverges_is_stopped_and_says_so(recorded, few_digits, tmp_path):
    _, compiled, _, _ = recorded
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    path = tmp_path / "run.jsonl"
    with pytest.raises(DivergedError):
        record_run(path, compiled, config, few_digits)
    record = read_record(path)
    assert record.summary is None
    assert "the loss became" in record.stopped
    assert any(math.isnan(loss) for loss in record.series("loss"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 headers"),
        ("{", ":1 is not a line of a record"),
        ('{"kind": "other"}', ":1 is not a line of a record"),
        ("[]", ":1 is not a line of a record"),
    ],
)
def test_files_that_are_no_records_are_refused(text, message, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_options_that_are_not_finite_are_read_as_they_were(tmp_path):
    options = {"beta_max": math.inf, "beta_min": -math.inf, "rule": "fr"}
    config = dataclasses.replace(CONFIG, optimizer_options=options)
    path = tmp_path / "run.jsonl"
    with RecordWriter(path, config) as writer:
        writer.write("step", {"loss": math.inf})
    record = read_record(path)
    assert record.config == config
    assert record.header["config"]["optimizer_options"]["beta_max"] == "inf"
    assert record.steps == [{"loss": None}]


def test_a_record_of_a_version_with_other_settings_is_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    with RecordWriter(path, CONFIG):
        pass
    line = json.loads(path.read_text(encoding="utf-8"))
    line["config"] |= {"warmup_steps": 7, "momentum": 0.5}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"run\.jsonl has the unknown settings \['momentum', 'warmup_s"
    ):
        read_record(path)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no record"):
        read_records(tmp_path)


def test_a_record_can_be_read_while_the_run_goes_on(tmp_path):
    path = tmp_path / "run.jsonl"
    with RecordWriter(path, CONFIG) as writer:
        writer.write("step", {"loss": 1.5})
        assert read_record(path).series("loss") == [1.5]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_record_that_finds_no_room_is_told():
    with pytest.raises(OSError, match="'/dev/full' could not be written; .*No space"):
        RecordWriter(Path("/dev/full"), RunConfig(), overwrite=True)
