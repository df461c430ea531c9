"""The protocol: equal budgets, who is extended, which trial is chosen, resumption."""

import dataclasses
import io
import math

import numpy as np
import pytest
import rich.console

from experiments.config import RunConfig
from experiments.optimizers import Choice, search_space
from experiments.records.files import read_record
from experiments.tuning.runner import PlannedRun, finished
from experiments.tuning.samplers import grid
from experiments.tuning.study import run_study, sweep_stage
from experiments.tuning.sweep import (
    Method,
    Sweep,
    final_records,
    rounds,
    sampled_method,
    with_choice,
)
from tests.experiments.tuning.fake_runner import FakeRunner

NAMES = ("sgd", "nesterov", "adamw")
# Where the best learning rate lies in the ranges; that of the first one below them.
OPTIMA = dict(zip(NAMES, (-0.5, 0.5, 0.6)))


def loss_of(config):
    space = search_space(config.optimizer, {}).dimensions["learning_rate"]
    return abs(math.log(config.learning_rate / space.at(OPTIMA[config.optimizer])))


def halton_sweep(seed=0, **settings):
    roles = ("learning_rate", "memory", "decay", "warmup")
    methods = [sampled_method(RunConfig(optimizer=n), roles, 5, seed) for n in NAMES]
    return Sweep(tuple(methods), **{"final_seeds": (10, 11), **settings})


def run(sweep, folder, runner=None, **settings):
    runner = runner or FakeRunner(loss_of)
    console = rich.console.Console(file=io.StringIO())
    run_study([sweep_stage(sweep, folder)], runner, console, **settings)
    return [path.stem for path in runner.ran]


@pytest.mark.parametrize("criterion", ["train_loss", "validation_accuracy"])
def test_all_get_the_same_budget_and_the_best_runs_again(tmp_path, criterion):
    sweep = halton_sweep(criterion=criterion)
    ran = run(sweep, tmp_path)
    assert len(ran) == sweep.most_runs == 3 * (5 + 2) + 3 * 2
    for name in NAMES:
        stem = f"batch_256-{name}"
        assert [r for r in ran if r.startswith(f"{stem}-trial")] == [
            f"{stem}-trial{number:02}-seed0" for number in range(5 + 2)
        ]
        trials = [read_record(path) for path in (tmp_path / "trials").glob(f"{stem}-*")]
        best = min(trials, key=lambda record: record.summary["validation_loss"])
        for seed in (10, 11):
            final = read_record(tmp_path / "finals" / f"{stem}-seed{seed}.jsonl")
            assert final.config == dataclasses.replace(best.config, seed=seed)
            assert len(final.trials) == 7
            losses = [trial["validation_loss"] for trial in final.trials]
            assert min(losses) == best.summary["validation_loss"]
    # SGD's optimum is below all of its rates: it goes down by two and by four.
    paths = [f"batch_256-sgd-trial{number:02}-seed0.jsonl" for number in range(7)]
    rates = np.array(
        [read_record(tmp_path / "trials" / p).config.learning_rate for p in paths]
    )
    np.testing.assert_allclose(rates[5:], rates[:5].min() / np.array([2, 4]))


def test_nothing_is_extended_if_all_optima_lie_within(tmp_path):
    sweep = halton_sweep()
    inner = dataclasses.replace(sweep, methods=sweep.methods[1:], extensions=3)
    ran = run(inner, tmp_path)
    assert len(ran) == 2 * 5 + 2 * 2
    assert inner.most_runs == 2 * (5 + 3 * 2) + 2 * 2


def test_each_variant_is_extended_and_a_method_is_on_an_edge_by_its_best(tmp_path):
    """The optimum is 0.1, within the grid, for the better of two momenta."""
    searches = grid(0.1, 3, 2.0, [{"momentum": 0.8}, {"momentum": 0.9}])
    method = Method(RunConfig(optimizer="nesterov"), searches)

    def loss(config):
        optimum, offset = {0.8: (0.1, 0.0), 0.9: (1.6, 0.5)}[
            config.optimizer_options["momentum"]
        ]
        return offset + abs(math.log(config.learning_rate / optimum))

    alone = Sweep((method,), final_seeds=(10,))
    assert len(run(alone, tmp_path / "alone", FakeRunner(loss))) == 6 + 1
    # With another method, whose best is at its edge, both momenta get two more rates.
    other = Method(
        RunConfig(optimizer="heavy_ball"), grid(1e-3, 3, 2.0, [{"momentum": 0.8}])
    )
    both = Sweep((method, other), final_seeds=(10,))
    folder = tmp_path / "both"
    assert len(run(both, folder, FakeRunner(loss))) == 6 + 3 + 4 + 2 + 2
    found = [
        read_record(folder / f"trials/batch_256-nesterov-trial{n:02}-seed0.jsonl")
        for n in range(10)
    ]
    added = [
        (r.config.optimizer_options["momentum"], r.config.learning_rate)
        for r in found[6:]
    ]
    root = math.sqrt(2)
    expected = [(0.8, 0.1 / root), (0.8, 0.1 * root), (0.9, 0.4), (0.9, 0.8)]
    np.testing.assert_allclose(added, expected)
    best, worst = final_records(both, folder)
    assert best.config.learning_rate == pytest.approx(0.1)
    assert best.config.optimizer_options == {"momentum": 0.8}
    assert worst.config.learning_rate == pytest.approx(8e-3)


def test_a_trial_is_judged_by_its_mean_over_seeds(tmp_path):
    method = Method(RunConfig(optimizer="sgd"), grid(0.2, 3, 2.0))
    # 0.1 is best with seed 0 and diverges with seed 1; 0.4 is second with both.
    losses = {(0.1, 0): 0.0, (0.1, 1): math.nan, (0.2, 0): 3.0, (0.2, 1): 1.0}
    runner = FakeRunner(lambda c: losses.get((c.learning_rate, c.seed), 1.5))
    sweep = Sweep((method,), 0, trial_seeds=(0, 1), final_seeds=(10,))
    assert len(run(sweep, tmp_path, runner)) == 6 + 1
    (final,) = final_records(sweep, tmp_path)
    assert final.config.learning_rate == 0.4
    assert [t["train_loss"] for t in final.trials] == [None, 2.0, 1.5]


def test_a_method_without_searches_goes_straight_to_its_final_runs(tmp_path):
    config = RunConfig(optimizer="tuning_free_nlcg", learning_rate=1.0)
    sweep = Sweep((Method(config),), extensions=2, final_seeds=(10, 11))
    assert sweep.most_runs == 2
    stem = "batch_256-tuning_free_nlcg"
    ran = run(sweep, tmp_path, FakeRunner(lambda _: 1.0))
    assert ran == [f"{stem}-seed10", f"{stem}-seed11"]
    records = final_records(sweep, tmp_path)
    assert [r.config for r in records] == [
        dataclasses.replace(config, seed=seed) for seed in (10, 11)
    ]
    assert not records[0].trials


def test_a_sweep_that_was_killed_resumes_with_the_same_trials(tmp_path):
    whole = run(halton_sweep(), tmp_path / "whole")
    for stop_after in (3, 17, 22):
        folder = tmp_path / str(stop_after)
        killed = FakeRunner(loss_of, stop_after)
        with pytest.raises(KeyboardInterrupt):
            run(halton_sweep(), folder, killed)
        # The run that was killed half-way is repeated, no other one is.
        rest = run(halton_sweep(), folder)
        assert [p.stem for p in killed.ran] + rest == whole
    configs = [
        {p.name: read_record(p).config for p in (tmp_path / name).glob("*/*")}
        for name in ("whole", "17")
    ]
    assert configs[0] == configs[1]
    assert run(halton_sweep(), tmp_path / "17") == []
    again = FakeRunner(loss_of)
    with pytest.raises(ValueError, match="trial00-seed0.jsonl is the record of an"):
        run(halton_sweep(seed=1), tmp_path / "17", again)
    assert not again.ran


def test_a_record_of_another_configuration_is_named(tmp_path):
    planned = PlannedRun(RunConfig(), tmp_path / "run.jsonl")
    assert finished(planned) is None
    FakeRunner(lambda _: 1.0).run([planned])
    assert finished(planned).config == planned.config
    other = planned._replace(config=dataclasses.replace(planned.config, seed=4))
    with pytest.raises(ValueError, match="configuration: seed=4 was 0; repeat the ear"):
        finished(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ()}, "at least one method"),
        ({"extensions": -1}, "extensions=-1 must be at least 0"),
        ({"factor": 1.0}, "factor=1.0 must be greater than 1"),
        ({"trial_seeds": ()}, r"trial_seeds=\(\) must be different seeds, one or"),
        ({"final_seeds": (1, 1)}, r"final_seeds=\(1, 1\) must be different seeds"),
        ({"final_seeds": (1, 0)}, r"final_seeds=\(1, 0\) has \[0\], seeds of the tri"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(halton_sweep(), **settings)


def test_wrong_methods_are_refused():
    config = RunConfig(optimizer="sgd", validation_examples=0)
    with pytest.raises(ValueError, match="validation_examples=0 leaves nothing for"):
        Sweep((Method(config),))
    assert Sweep((Method(config),), criterion="train_loss").most_runs == 3
    with pytest.raises(ValueError, match="'batch_256-sgd'. more than once"):
        Sweep((Method(config), Method(config)))
    with pytest.raises(ValueError, match="1 trials for batch_256-sgd; at least 2"):
        Sweep((Method(RunConfig(optimizer="sgd"), grid(0.1, 1, 2.0)),))
    with pytest.raises(ValueError, match="must contain 'learning_rate', and otherw"):
        sampled_method(config, ("memory",), 2)
    with pytest.raises(ValueError, match="trials=1 must be at least 2"):
        sampled_method(config, ("learning_rate",), 1)


def test_an_option_that_is_given_is_not_searched():
    roles = ("learning_rate", "memory", "decay")
    config = with_choice(RunConfig(), Choice("muon", {"momentum": 0.7}))
    method = sampled_method(config, roles, 3)
    ((point, *_),) = method.searches
    assert set(point) == {"learning_rate", "weight_decay"}
    assert method.stem == "batch_256-muon,momentum=0.7"
    # The places of the other dimensions do not move.
    ((free, *_),) = sampled_method(RunConfig(optimizer="muon"), roles, 3).searches
    assert point == {name: value for name, value in free.items() if name in point}


def test_the_first_round_has_all_trials(tmp_path):
    first = next(rounds(halton_sweep(), tmp_path))
    assert len(first) == 15
    assert {run.path.parent.name for run in first} == {"trials"}
    assert [run.config.optimizer for run in first[::5]] == list(NAMES)
