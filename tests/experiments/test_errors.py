import jax
import pytest

from experiments import run
from experiments.errors import UserError, ending_with_a_message


@pytest.mark.parametrize("kind", [ValueError, OSError, UserError])
def test_bad_input_ends_with_its_error(kind):
    with (
        pytest.raises(SystemExit, match="error: no room"),
        ending_with_a_message("experiments.run", []),
    ):
        raise kind("no room")


def test_ctrl_c_ends_with_the_command_that_resumes(capsys):
    with (
        pytest.raises(SystemExit) as ended,
        ending_with_a_message("experiments.run", ["--record", "my runs/a.jsonl"]),
    ):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    line = "resume with: python -m experiments.run --record 'my runs/a.jsonl'"
    assert capsys.readouterr().err == f"\ninterrupted; {line}\n"


def test_run_says_that_it_needs_checkpoints_to_resume(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupted)
    record = f"--record={tmp_path / 'run.jsonl'}"
    for arguments, told in (
        ([record], "without --checkpoint-dir the run cannot be resumed"),
        ([record, "--checkpoint-dir=c"], "resume with: python -m experiments.run"),
    ):
        with pytest.raises(SystemExit):
            run.main(arguments)
        assert told in capsys.readouterr().err


def test_an_existing_record_is_refused_before_data_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    path.touch()
    monkeypatch.setattr(run.data, "load_or_open", None)  # would raise a TypeError
    with pytest.raises(SystemExit, match="error: the record .* exists"):
        run.main([f"--record={path}"])


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("RESOURCE_EXHAUSTED", jax.errors.JaxRuntimeError),
        ("INVALID_ARGUMENT", jax.errors.JaxRuntimeError),
        ("UNIMPLEMENTED", jax.errors.JaxRuntimeError),
        ("INTERNAL", SystemExit),
    ],
)
def test_only_errors_that_lost_processes_can_cause_are_blamed_on_them(
    status, expected, tmp_path, monkeypatch
):
    message = f"{status}: what happened"

    def failing(*_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(run, "run", failing)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(expected, match=message) as ended:
        run.main([f"--record={tmp_path / 'run.jsonl'}"])
    assert ("lost the others" in str(ended.value)) == (expected is SystemExit)
