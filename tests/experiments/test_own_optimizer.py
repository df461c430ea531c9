"""An optimizer that a user registers, through the commands, as CONTRIBUTING.md says."""

import re
from pathlib import Path

import pytest

from experiments import optimizers, run
from experiments.optimizers import registration
from experiments.records.files import read_record, read_records
from experiments.report import __main__ as report
from experiments.tuning import __main__ as sweep

NAME = "my_optimizers:signed_momentum"
SMALL = ["--config.epochs=2"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The module of CONTRIBUTING.md, to be imported by the commands."""
    text = Path("CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# my_optimizers.py\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_optimizers.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    # Forgotten after the test, as the module would otherwise be known to all others.
    known = dict(registration.OPTIMIZERS)
    monkeypatch.setattr(registration, "OPTIMIZERS", known)


@pytest.mark.usefixtures("module")
def test_one_registration_goes_through_run_sweep_and_report(tmp_path, capsys):
    record = tmp_path / "alone" / "run.jsonl"
    options = ["--config.optimizer-options", "momentum", "0.5"]
    run.main([f"--config.optimizer={NAME}", *options, *SMALL, f"--record={record}"])
    assert read_record(record).summary["gradient_equivalents"] == 8
    out = tmp_path / "sweep"
    sweep.main(
        [
            *SMALL,
            "--config.warmup-epochs=0",
            *("--optimizers", f"{NAME},momentum=0.5", "sgd"),
            *("--dimensions", "learning_rate"),
            *("--trials=2", "--extensions=0", "--final-seeds", "1"),
            f"--out={out}",
        ]
    )
    finals = read_records(out / "finals")
    assert {r.config.optimizer for r in finals} == {NAME, "sgd"}
    dimension = optimizers.search_space(NAME).dimensions["learning_rate"]
    for record in finals:
        if record.config.optimizer == NAME:
            assert dimension.low <= record.config.learning_rate <= dimension.high
    capsys.readouterr()
    report.main([str(out / "finals"), "--out", str(tmp_path / "report")])
    assert "Signed momentum" in capsys.readouterr().out
    table = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "Signed momentum" in table


def test_a_module_that_is_not_there_is_reported(tmp_path):
    message = "error: optimizer='nowhere:lion' names the module 'nowhere', which cannot"
    with pytest.raises(SystemExit, match=message):
        run.main(
            ["--config.optimizer=nowhere:lion", f"--record={tmp_path / 'r.jsonl'}"]
        )
