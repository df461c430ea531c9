"""The sweep: equal budgets, how it goes on after a stop, trials in one program."""

import dataclasses
import math

import numpy as np
import pytest
import rich.console

from experiments import data
from experiments.config import RunConfig
from experiments.records.files import RecordWriter, read_record
from experiments.tuning import sweep
from experiments.tuning.runner import Runner, finished
from experiments.tuning.spaces import search_space, with_values
from experiments.tuning.sweep import Sweep, planned_runs, quasi_random_points, run_sweep

NAMES = ("sgd", "nesterov", "adamw")
# Where the best learning rate lies in the ranges; of the first one below them.
OPTIMA = dict(zip(NAMES, (-0.5, 0.5, 0.6)))


def small_sweep(**settings):
    configs = tuple(RunConfig(optimizer=name) for name in NAMES)
    return Sweep(configs, **{"trials": 5, "final_seeds": (10, 11), **settings})


class FakeRunner:
    """Stands for training; ``stop_after`` runs it is killed in the middle of one."""

    def __init__(self, stop_after=math.inf):
        self.ran = []
        self.stop_after = stop_after

    def run(self, planned):
        config = planned.config
        self.ran.append(planned.path.stem)
        space = search_space(config.optimizer).dimensions["learning_rate"]
        optimum = space.at(OPTIMA[config.optimizer])
        loss = abs(math.log(config.learning_rate / optimum))
        with RecordWriter(planned.path, config, overwrite=True) as writer:
            for trial in planned.trials:
                writer.write("trial", trial)
            if len(self.ran) > self.stop_after:
                raise KeyboardInterrupt
            names = ("train_loss", "validation_loss", "validation_accuracy")
            writer.write("summary", dict(zip(names, (loss, loss, -loss))))


def test_points_are_the_same_for_all_and_begin_with_the_same_ones():
    points = quasi_random_points("nesterov", ("learning_rate", "memory"), 16, 0)
    assert points[:5] == quasi_random_points(
        "nesterov", ("learning_rate", "memory"), 5, 0
    )
    assert points != quasi_random_points("nesterov", ("learning_rate", "memory"), 16, 1)
    space = search_space("nesterov").dimensions["learning_rate"]
    places = np.log(np.array([p["learning_rate"] for p in points]) / space.low)
    places /= math.log(space.high / space.low)
    # A Halton sequence in base two: one point in each sixteenth.
    assert sorted(np.floor(16 * places).astype(int)) == list(range(16))
    adamw = quasi_random_points("adamw", ("learning_rate", "memory"), 16, 0)
    np.testing.assert_allclose(
        [p["momentum"] for p in points], [p["b1"] for p in adamw]
    )
    assert set(points[0]) == {"learning_rate", "momentum"}
    assert set(quasi_random_points("sgd", ("learning_rate", "memory"), 1, 0)[0]) == {
        "learning_rate"
    }


@pytest.mark.parametrize("criterion", ["validation_loss", "validation_accuracy"])
def test_everybody_gets_the_same_budget_and_the_best_runs_again(tmp_path, criterion):
    runner = FakeRunner()
    run_sweep(small_sweep(criterion=criterion), tmp_path, runner)
    for name in NAMES:
        stem = f"batch_256-{name}"
        assert [r for r in runner.ran if r.startswith(f"{stem}-trial")] == [
            f"{stem}-trial{number:02}" for number in range(5 + 2)
        ]
        trials = [read_record(path) for path in (tmp_path / "trials").glob(f"{stem}-*")]
        best = min(trials, key=lambda record: record.summary["validation_loss"])
        for seed in (10, 11):
            final = read_record(tmp_path / "finals" / f"{stem}-seed{seed}.jsonl")
            assert final.config == dataclasses.replace(best.config, seed=seed)
            assert len(final.trials) == 7
    # SGD's optimum lay below all of its rates: it went down by two and by four.
    rates = [
        read_record(tmp_path / "trials" / f"batch_256-sgd-trial{n:02}.jsonl")
        for n in range(7)
    ]
    rates = np.array([record.config.learning_rate for record in rates])
    np.testing.assert_allclose(rates[5:], rates[:5].min() / np.array([2, 4]))


def test_a_sweep_that_was_killed_goes_on_with_the_same_trials(tmp_path):
    whole = FakeRunner()
    run_sweep(small_sweep(), tmp_path / "whole", whole)
    for stop_after in (3, 17, 22):
        killed, rest = FakeRunner(stop_after), FakeRunner()
        folder = tmp_path / str(stop_after)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(small_sweep(), folder, killed)
        run_sweep(small_sweep(), folder, rest)
        # What was killed half-way is repeated, nothing else is.
        assert killed.ran[:-1] + rest.ran == whole.ran
    configs = [
        {p.name: read_record(p).config for p in (tmp_path / name).glob("*/*")}
        for name in ("whole", "17")
    ]
    assert configs[0] == configs[1]
    run_sweep(small_sweep(), tmp_path / "17", again := FakeRunner())
    assert not again.ran
    with pytest.raises(ValueError, match="trial00.jsonl is the record of another"):
        run_sweep(small_sweep(sampler_seed=1), tmp_path / "17", again)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 1}, "trials=1 must be at least 2"),
        ({"extensions": -1}, "extensions=-1 must be at least 0"),
        ({"final_seeds": (1, 0)}, r"final_seeds=\(1, 0\) holds the seed of the trials"),
        ({"dimensions": ("memory",)}, "must hold 'learning_rate', and else only"),
        ({"configs": ()}, "at least one optimiser"),
        (
            {"configs": (RunConfig(validation_examples=0),)},
            "validation_examples=0 leaves nothing to choose by",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(small_sweep(), **settings)


@pytest.mark.slow
def test_trials_together_are_those_one_by_one(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, options: few_digits)
    config = RunConfig(optimizer="nesterov", batch_size=16, epochs=2)
    settings = {
        "dimensions": ("learning_rate", "memory", "decay"),
        "trials": 2,
        "extensions": 0,
        "final_seeds": (10, 11),
    }
    # The second one diverges.
    points = [
        {"learning_rate": 0.1, "momentum": 0.8, "l2": 1e-4},
        {"learning_rate": 1e20, "momentum": 0.9, "l2": 1e-3},
    ]
    monkeypatch.setattr(sweep, "quasi_random_points", lambda *_: list(points))
    console = rich.console.Console(record=True, width=200)
    found = {}
    for together in (1, 2):
        folder = tmp_path / str(together)
        runner = Runner(tmp_path, console)
        run_sweep(Sweep((config,), **settings), folder, runner, together)
        found[together] = {p.name: read_record(p) for p in folder.glob("*/*.jsonl")}
    assert len(found[1]) == 4
    assert set(found[1]) == set(found[2])
    for name, alone in found[1].items():
        other = found[2][name]
        assert alone.config == other.config
        assert (alone.stopped is None) == ("trial01" not in name)
        assert (other.stopped is None) == (alone.stopped is None)
        if alone.stopped is None:
            assert len(alone.steps) == len(other.steps) == 8
            np.testing.assert_allclose(
                alone.series("loss"), other.series("loss"), rtol=2e-4
            )
            for figure in ("test_loss", "validation_loss"):
                assert alone.summary[figure] == pytest.approx(
                    other.summary[figure], rel=1e-3
                )
    assert console.export_text().count("diverged") == 2
    one = found[1]["batch_16-nesterov-seed10.jsonl"]
    assert one.config == dataclasses.replace(with_values(config, points[0]), seed=10)


def test_runs_of_other_programs_cannot_run_together(tmp_path):
    first = next(planned_runs(small_sweep(), tmp_path))
    runner = Runner(tmp_path, rich.console.Console())
    other = first._replace(config=RunConfig(optimizer="adam"))
    with pytest.raises(ValueError, match="do not share a program"):
        runner.run_together([first, other])
    with pytest.raises(ValueError, match="together=0 must be at least 1"):
        run_sweep(small_sweep(), tmp_path, runner, together=0)
    assert finished(first) is None


def test_the_command_refuses_wrong_input(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="error: optimizer='lion' is unknown"):
        sweep.main(["--optimizers", "lion", f"--out={tmp_path}"])
    with pytest.raises(SystemExit, match=r"='imagenet2012' is streamed, .*'cifar100'"):
        sweep.main(["--config.dataset=imagenet2012", f"--out={tmp_path}"])
    (tmp_path / "file").touch()
    monkeypatch.setattr(sweep, "Runner", lambda data_dir, console: FakeRunner())
    with pytest.raises(SystemExit, match="error: .*Not a directory: .*file/trials"):
        sweep.main(["--optimizers", "sgd", f"--out={tmp_path / 'file'}"])


def test_a_record_of_another_configuration_is_told(tmp_path):
    first = next(planned_runs(small_sweep(), tmp_path))
    FakeRunner().run(first)
    assert finished(first).config == first.config
    other = first._replace(config=dataclasses.replace(first.config, seed=4))
    with pytest.raises(ValueError, match="run now: seed=4 was 0; go on with its own"):
        finished(other)
