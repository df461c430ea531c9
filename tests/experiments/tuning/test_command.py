"""``python -m experiments.tuning``, as a user calls it."""

import numpy as np
import pytest

from experiments.records.files import read_records
from experiments.tuning import __main__ as command
from tests.experiments.tuning.fake_runner import FakeRunner


@pytest.fixture
def fake(monkeypatch):
    runner = FakeRunner(lambda config: config.learning_rate)
    monkeypatch.setattr(command, "Runner", lambda data_dir: runner)
    monkeypatch.setattr(command, "write_report", lambda records, out, console: None)
    return runner


def test_the_command_compares_what_it_names(fake, tmp_path, capsys):
    given = [
        "--optimizers",
        "muon",
        "nlcg,preconditioner=rms,rule=fr",
        "--trials=3",
        "--extensions=0",
        "--final-seeds",
        "7",
        "--dimensions",
        "learning_rate",
        "memory",
        "--config.seed=4",
        f"--out={tmp_path}",
    ]
    command.main(given)
    assert "8 of 8, " in capsys.readouterr().out
    trials = read_records(tmp_path / "trials")
    assert [r.config.optimizer for r in trials] == ["muon"] * 3 + ["nlcg"] * 3
    assert {r.config.seed for r in trials} == {4}
    assert {r.config.schedule for r in trials} == {"cosine"}
    options = trials[3].config.optimizer_options
    assert options["rule"] == "fr"
    assert options["preconditioner"] == "rms"
    # The same places of the two ranges of the memory, .8 to .99.
    momenta = [r.config.optimizer_options["momentum"] for r in trials[:3]]
    bounds = [r.config.optimizer_options["beta_max"] for r in trials[3:]]
    np.testing.assert_allclose(momenta, bounds)
    finals = read_records(tmp_path / "finals")
    best = min(trials[:3], key=lambda r: r.config.learning_rate)
    assert finals[0].config.learning_rate == best.config.learning_rate
    assert [r.config.seed for r in finals] == [7, 7]


def test_the_command_refuses_wrong_input(fake, tmp_path):
    out = f"--out={tmp_path}"
    for given, message in (
        (["--optimizers", "lion"], "error: optimizer='lion' is unknown"),
        (["--optimizers", "muon,momentum"], "error: optimizer='muon,momentum' has"),
        (["--optimizers", "sgd,beta=0.9"], "error: optimizer_options has beta=0.9"),
        (["--optimizers", "sgd", "--trials=1"], "error: trials=1 must be at least 2"),
        (["--sampler-seed=-1"], "error: sampler_seed=-1 must be at least 0"),
        (["--config.optimizer=sgd"], "error: config.optimizer='sgd' must be given by"),
        (["--together=0"], "error: together=0 must be at least 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            command.main([*given, out])
    assert not fake.ran
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: .*Not a directory: .*file/trials"):
        command.main(["--optimizers", "sgd", f"--out={tmp_path / 'file'}"])


def test_a_streamed_data_set_is_refused(tmp_path):
    given = ["--optimizers=sgd", "--config.dataset=imagenet2012", f"--out={tmp_path}"]
    with pytest.raises(SystemExit, match=r"='imagenet2012' is streamed, .*'cifar100'"):
        command.main(given)


def test_an_interrupted_sweep_prints_the_line_that_resumes_it(fake, tmp_path, capsys):
    fake.stop_after = 1
    given = ["--optimizers", "sgd", "--trials=2", f"--out={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        command.main(given)
    assert ended.value.code == 130
    line = f"resume with: python -m experiments.tuning {' '.join(given)}"
    assert line in capsys.readouterr().err


def test_help_lists_the_names_that_are_allowed(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    for name in ("sgd", "shampoo", "nlcg", "large_batch_nlcg", "paper_nlcg"):
        assert name in shown
