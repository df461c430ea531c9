"""The runner: one compiled program for a whole search, and runs in one call."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from experiments import data
from experiments.config import RunConfig
from experiments.optimizers import Choice
from experiments.records.files import read_record
from experiments.training import Evaluation, Program
from experiments.tuning import runner as runners
from experiments.tuning.runner import PlannedRun, Runner, finished
from experiments.tuning.samplers import with_values
from experiments.tuning.study import jobs_stage, run_study, sweep_stage
from experiments.tuning.sweep import Method, Sweep, with_choice
from tests.experiments.tuning.fake_runner import FakeRunner

# The second point diverges.
POINTS = (
    {"learning_rate": 0.1, "momentum": 0.8, "l2": 1e-4},
    {"learning_rate": 1e20, "momentum": 0.9, "l2": 1e-3},
)


def compilations(monkeypatch, name):
    """Counts the calls of a function of the runner."""
    calls, function = [], getattr(runners, name)

    def counted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(runners, name, counted)
    return calls


def test_a_search_compiles_once_alone_or_together(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, options: few_digits)
    alone = compilations(monkeypatch, "compile_program")
    shared = compilations(monkeypatch, "compile_vmapped")
    config = RunConfig(optimizer="nesterov", batch_size=32, epochs=2, ema_decay=0.9)
    sweep = Sweep((Method(config, (POINTS,)),), extensions=1, final_seeds=(10, 11))
    found = {}
    for together in (1, 2):
        folder = tmp_path / str(together)
        console = rich.console.Console(file=io.StringIO(), width=200)
        runner = Runner(tmp_path)
        stages = [sweep_stage(sweep, folder)]
        assert run_study(stages, runner, console, together=together)
        found[together] = {p.name: read_record(p) for p in folder.glob("*/*.jsonl")}
        # Of two rates one is always at the edge: 0.05 and 0.025 are tried, too.
        assert len(found[together]) == sweep.most_runs == 6
        assert console.file.getvalue().count("diverged") == 1
    assert (len(alone), len(shared)) == (1, 1)
    assert set(found[1]) == set(found[2])
    for name, one in found[1].items():
        other = found[2][name]
        assert one.config == other.config
        assert [t["learning_rate"] for t in one.trials] == [
            t["learning_rate"] for t in other.trials
        ]
        assert (one.stopped is not None) == ("trial01" in name)
        assert (other.stopped is None) == (one.stopped is None)
        if one.stopped is None:
            assert len(one.steps) == len(other.steps) == 4
            # Sums of float32 in another order, over four steps.
            np.testing.assert_allclose(
                one.series("loss"), other.series("loss"), rtol=2e-4
            )
            assert set(one.summary) == set(other.summary)
            for metric in ("test_loss", "test_unaveraged_loss", "validation_loss"):
                assert one.summary[metric] == pytest.approx(
                    other.summary[metric], rel=1e-3
                )
    final = found[1]["batch_32-nesterov-seed10.jsonl"]
    best = min(
        (r for r in found[1].values() if r.config.seed == 0 and r.summary),
        key=lambda r: r.summary["validation_loss"],
    )
    assert final.config == dataclasses.replace(best.config, seed=10)
    assert with_values(config, POINTS[0]) == dataclasses.replace(
        found[1]["batch_32-nesterov-trial00-seed0.jsonl"].config, seed=0
    )


def test_an_evaluation_that_is_not_finite_stops_one_of_two_runs(
    few_digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(data, "load", lambda name, options: few_digits)
    runs = [
        PlannedRun(
            RunConfig(optimizer="sgd", batch_size=32, epochs=1, seed=seed),
            tmp_path / f"{seed}.jsonl",
        )
        for seed in (0, 1)
    ]
    # Two evaluations of a report, the second of the validation set.
    losses = iter((0.5, np.nan, 0.5, 0.25, 0.75))
    monkeypatch.setattr(
        Program, "evaluate", lambda *_: Evaluation(jnp.float32(next(losses)), 0.9)
    )
    first, second = Runner(tmp_path).run(runs)
    assert first is None
    assert (second["validation_loss"], second["test_loss"]) == (0.25, 0.75)
    record = read_record(runs[0].path)
    assert record.stopped.startswith("validation_loss became nan after 2 steps with")
    assert record.summary is None


def test_a_loop_on_the_host_takes_one_run_at_a_time(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, options: few_digits)
    config = RunConfig(batch_size=32, micro_batches=2, micro_batch_loop="host")
    runs = [
        PlannedRun(dataclasses.replace(config, seed=seed), tmp_path / f"{seed}.jsonl")
        for seed in (0, 1)
    ]
    with pytest.raises(ValueError, match="loop='host' does not allow 2 runs in one"):
        Runner(tmp_path).run(runs)


def test_a_record_that_cannot_be_read_is_kept(tmp_path):
    run = PlannedRun(RunConfig(), tmp_path / "run.jsonl")
    FakeRunner(lambda _: 0.5).run([run])
    console = rich.console.Console(file=io.StringIO())
    text = run.path.read_text(encoding="utf-8")
    assert finished(run).summary["train_loss"] == 0.5
    # What a killed run leaves counts as nothing, with or without a whole line.
    for count in (5, len(text) - 5):
        run.path.write_text(text[:count], encoding="utf-8")
        assert finished(run) is None
    for changed, message in (
        (text.replace('"batch_size"', '"batch"'), "has the unknown settings .'batch'."),
        (text.replace('{"kind": "step"', '{"kind"'), "jsonl:2 is not a line of a rec"),
    ):
        run.path.write_text(changed, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            run_study([jobs_stage([run])], FakeRunner(lambda _: 0.5), console)
        assert run.path.read_text(encoding="utf-8") == changed


def test_runs_of_different_programs_cannot_run_together(tmp_path):
    runs = [
        PlannedRun(RunConfig(optimizer=name), tmp_path / name)
        for name in ("sgd", "adam")
    ]
    with pytest.raises(ValueError, match="do not share a program"):
        Runner(tmp_path).run(runs)


def test_numbers_are_checked_before_they_become_inputs(tmp_path):
    config = with_choice(RunConfig(), Choice("nlcg", {"beta_max": -1.0}))
    with pytest.raises(ValueError, match="beta_max"):
        Runner(tmp_path).run([PlannedRun(config, tmp_path / "run.jsonl")])
