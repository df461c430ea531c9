"""The commands, through ``main`` as a user calls them."""

import json
import re
import struct

import pytest
from tensorboardX.proto import event_pb2

from experiments import run
from experiments.bench import curvature as bench_curvature
from experiments.bench import training as bench_training
from experiments.bench import update as bench
from experiments.bench.update_peers import MATRIX_PEERS, PEERS
from experiments.records.files import origin, read_record, read_records
from experiments.studies import digits as demo


def test_run_leaves_a_record(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    arguments = [
        "--config.optimizer=nesterov",
        "--config.learning-rate=0.1",
        "--config.optimizer-options",
        "momentum",
        "0.8",
        "--config.epochs=2",
        f"--record={path}",
    ]
    run.main(arguments)
    record = read_record(path)
    assert record.config.optimizer_options == {"momentum": 0.8}
    assert record.summary["step"] == 8
    assert "test accuracy" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: the record .* exists"):
        run.main(arguments)


def test_run_writes_for_tensorboard_what_it_records(tmp_path):
    path, folder = tmp_path / "run.jsonl", tmp_path / "board"
    run.main(["--config.epochs=2", f"--record={path}", f"--tensorboard-dir={folder}"])
    (written,) = folder.iterdir()
    shown = {}
    content = written.read_bytes()
    while content:  # length, checksum, event, checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append(value.simple_value)
        content = content[16 + length :]
    record = read_record(path)
    assert shown["step/loss"] == pytest.approx(record.series("loss"), rel=1e-6)
    evaluations = [line["validation_accuracy"] for line in record.evaluations]
    assert shown["evaluation/validation_accuracy"] == pytest.approx(evaluations)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.dataset=mnits", "error: dataset='mnits' is unknown; allowed are"),
        ("--config.batch-size=2000", "error: batch_size=2000 exceeds the training set"),
        ("--checkpoint-every=0", "error: every=0 must be an integer of at least 1"),
        ("--config.optimizer=lion", "error: optimizer='lion' is unknown"),
        ("--config.learning-rate=1e30", "error: the loss became"),
    ],
)
def test_run_ends_with_a_message(argument, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run.main(
            [
                argument,
                f"--record={tmp_path / 'run.jsonl'}",
                f"--checkpoint-dir={tmp_path / 'checkpoints'}",
            ]
        )


def test_run_refuses_a_setting_that_is_unknown(capsys):
    with pytest.raises(SystemExit):
        run.main(["--config.momentum=0.9"])
    assert "momentum" in capsys.readouterr().err


@pytest.mark.slow
def test_small_demo_reports_what_it_recorded(tmp_path, capsys):
    demo.main(["--small", "--out", str(tmp_path)])
    assert "The demo took" in capsys.readouterr().out
    folder = tmp_path / demo.SMALL.places[0].name / "finals"
    records = read_records(folder)
    assert len(records) == len(demo.METHODS) * len(demo.SMALL.final_seeds)
    for record in records:
        assert len(record.steps) == demo.SMALL.steps
        if record.config.optimizer == "tuning_free_nlcg":
            assert not record.trials
            continue
        chosen = min(record.trials, key=lambda trial: trial["train_loss"])
        assert record.config.learning_rate == chosen["learning_rate"]
    report = (tmp_path / "report.md").read_text(encoding="utf-8").replace("**", "")
    assert "| NLCG tuning-free, 8 steps | not tuned |" in report
    demo.main(["--small", "--out", str(tmp_path)])
    assert "were recorded by an earlier call" in capsys.readouterr().out


@pytest.mark.slow
def test_bench_measures_every_peer(tmp_path, capsys):
    path = tmp_path / "bench.json"
    bench.main(["--small", "--rounds=1", f"--json={path}"])
    assert "3 leaves" in capsys.readouterr().out
    result = json.loads(path.read_text(encoding="utf-8"))
    by_peer = {m["peer"]: m for m in result["measurements"]}
    assert list(by_peer) == list(PEERS)
    assert by_peer["adam"]["step_ratio"] == by_peer["adam"]["update_ratio"] == 1
    # Copies of the parameters, beside a few scalars.
    copies = {"adam": 2, "nlcg FR": 1, "nlcg PR+": 2, "nlcg FR, bf16 state": 0.5}
    for peer, count in copies.items():
        assert by_peer[peer]["state_per_params"] == pytest.approx(count, abs=0.02)
    assert result["leaves"] == 3
    assert result.items() >= origin().items()
    # The stem's kernel and the dense layer.
    assert result["parameters"] == 7 * 7 * 3 * 64 + 1000 + 2048 * 1000


@pytest.mark.slow
def test_bench_of_matrices_measures_muon_and_the_preset(tmp_path):
    path = tmp_path / "bench.json"
    bench.main(["--small", "--matrices", "--rounds=1", f"--json={path}"])
    result = json.loads(path.read_text(encoding="utf-8"))
    by_peer = {m["peer"]: m for m in result["measurements"]}
    assert list(by_peer) == list(MATRIX_PEERS)
    # Factors and roots of the blocks: four of 512 by two of 500 for the dense layer.
    factors = 4 * 2 * (512**2 + 500**2) + 147**2 + 64**2
    parameters = 7 * 7 * 3 * 64 + 1000 + 2048 * 1000
    # And direction, gradient and second moment.
    copies = {"muon": 1, "nlcg large batch": 3 + 2 * factors / parameters}
    for peer, count in copies.items():
        assert by_peer[peer]["state_per_params"] == pytest.approx(count, abs=0.01)


@pytest.mark.slow
def test_bench_of_curvature_measures_every_peer(tmp_path, capsys):
    path = tmp_path / "bench.json"
    bench_curvature.main(
        [
            "--model=mlp",
            "--batch-size=4",
            "--image-size=4",
            "--rounds=1",
            f"--json={path}",
        ]
    )
    assert "4 images" in capsys.readouterr().out
    result = json.loads(path.read_text(encoding="utf-8"))
    by_peer = {m["peer"]: m for m in result["measurements"]}
    assert by_peer["gradient"]["ratio"] == 1
    targets = {m["target"] for m in by_peer.values()}
    assert targets == {None, 3.0, 2.0, 1.3}
    assert all(m["least_ms"] <= m["ms"] for m in by_peer.values())


@pytest.mark.slow
def test_bench_of_training_measures_both(capsys):
    small = ["--model=resnet8_narrow", "--side=8", "--micro-batch-size=4"]
    bench_training.main([*small, "--micro-batches=2", "--rounds=2"])
    text = capsys.readouterr().out
    found = re.search(r"step (\d+) images/s, .* alone (\d+), ratio (\S+);", text)
    step, gradient, ratio = map(float, found.groups())
    assert ratio == pytest.approx(step / gradient, abs=0.01)  # of rounded numbers
    with pytest.raises(SystemExit):
        bench_training.main([*small, "--rounds=1"])


@pytest.mark.slow
def test_bench_of_curvature_measures_what_is_named(tmp_path):
    path = tmp_path / "bench.json"
    size = ["--model=mlp", "--batch-size=4", "--image-size=4", "--rounds=1"]
    bench_curvature.main([*size, "--peers", "Newton-v", f"--json={path}"])
    result = json.loads(path.read_text(encoding="utf-8"))
    names = [m["peer"] for m in result["measurements"]]
    assert names == ["gradient", "Gauss-Newton-vector product"]
    assert result.items() >= origin().items()
    with pytest.raises(SystemExit, match="peers has 'Newtn', which is in none of"):
        bench_curvature.main([*size, "--peers", "Newtn"])


def test_bench_of_curvature_refuses_an_empty_batch():
    with pytest.raises(SystemExit):
        bench_curvature.main(["--batch-size=0"])


def test_bench_refuses_no_rounds():
    with pytest.raises(SystemExit):
        bench.main(["--rounds=0"])
