"""Figures of a stream, which cover a whole report wherever a run was interrupted."""

import json

import numpy as np
import pytest

from experiments import data
from experiments.config import RunConfig
from experiments.data.photo_stream import PhotoStream
from experiments.records.files import read_record
from experiments.records.run import record_run
from experiments.training import compile_program, make_program
from experiments.training.checkpoints import Checkpoints
from tests.experiments.fake_imagenet import encoded
from tests.experiments.records.interrupted import KilledError, assert_same_record, go


@pytest.fixture(scope="module")
def streamed():
    """A compiled run of four calls per report, and its stream of photos."""
    source = [
        {"image": encoded(row), "label": row % 3, "file_name": f"{row}"}
        for row in range(32)
    ]
    photos = PhotoStream(source, 8)
    dataset = data.StreamedDataset(3, photos, None, photos)
    config = RunConfig(
        dataset="imagenet2012",
        optimizer="sgd",
        learning_rate=0.01,
        batch_size=16,
        epochs=8,
        epochs_per_report=4,
        steps_per_call=2,
        standardization="imagenet",
    )
    return config, compile_program(make_program(config, dataset), dataset), dataset


def test_figures_of_a_stream_are_those_of_the_whole_report(
    streamed, tmp_path, monkeypatch
):
    config, compiled, dataset = streamed
    path = tmp_path / "whole.jsonl"
    record_run(path, compiled, config, dataset)
    whole = read_record(path)
    for evaluation, first in zip(whole.evaluations, (0, 8), strict=True):
        losses = np.float32(whole.series("label_loss")[first : first + 8])
        assert evaluation["train_loss"] == losses.mean()

    # A pause after each call, and killed in the middle of either report.
    save = Checkpoints.save

    def save_and_die(self, step, state, progress):
        save(self, step, state, progress)
        if step in killed:
            killed.remove(step)
            raise KilledError

    killed, seen = [4, 10], []
    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    for _ in range(2):
        with pytest.raises(KilledError):
            go(tmp_path, compiled, dataset, config, seen=seen, seconds=1e-9)
    go(tmp_path, compiled, dataset, config, seen=seen, seconds=1e-9)
    assert_same_record(tmp_path / "run.jsonl", whole)
    record = read_record(tmp_path / "run.jsonl")
    assert [line["step"] for line in record.resumed] == [4, 10]
    seconds = [0.0] + [line["seconds"] for line in record.evaluations]
    assert [line["images_per_second"] for line in record.evaluations] == pytest.approx(
        8 * 16 / np.diff(seconds)
    )
    for report, first in zip(seen, (0, 8), strict=True):
        found = whole.series("loss")[first : first + 8]
        np.testing.assert_array_equal(report.metrics["loss"], np.float32(found))
        assert report.metrics["loss"].dtype == np.float32


def test_a_record_of_other_metrics_is_resumed(streamed, tmp_path, monkeypatch):
    config, compiled, dataset = streamed
    path = tmp_path / "run.jsonl"
    save = Checkpoints.save

    def save_and_die(self, step, state, progress):
        save(self, step, state, progress)
        raise KilledError

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(KilledError):
        go(tmp_path, compiled, dataset, config, seconds=1e-9)
    monkeypatch.undo()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line.pop("label_loss", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    go(tmp_path, compiled, dataset, config, seconds=1e-9)
    record = read_record(path)
    rest = [step["label_loss"] for step in record.steps[2:8]]
    assert record.evaluations[0]["train_loss"] == np.float32(rest).mean()
