import dataclasses

import numpy as np

from experiments.report.cells import Cell, longest_series
from experiments.report.steps_to import (
    best_baseline,
    smoothed_losses,
    steps_table,
    steps_to,
)
from tests.experiments.report.synthetic import record

BASELINES = ("sgd", "muon", "adam")


def cell(optimizer, *losses):
    return Cell(
        tuple(
            record(optimizer, x, seed=seed, cost=2.0) for seed, x in enumerate(losses)
        )
    )


def test_steps_to_the_loss_of_the_best_baseline():
    falling = np.linspace(2.0, 0.2, 10)
    peer = cell("muon", falling, falling + 0.3, falling - 0.3)
    worse = cell("sgd", falling + 1.0)
    faster = cell("nlcg", falling - 0.4)
    diverged = cell("adam", [*falling[:6], np.nan])
    np.testing.assert_allclose(smoothed_losses(peer)[4:], falling[2:8], atol=1e-12)
    assert not np.isfinite(smoothed_losses(diverged)[-1])
    assert best_baseline([worse, faster, peer, diverged], BASELINES) is peer
    target = smoothed_losses(peer)[-1]
    assert steps_to(peer, target) == 10
    assert steps_to(faster, target) == 8  # .2 lower per step: two steps earlier
    assert steps_to(worse, target) is None
    table = steps_table([worse, faster, peer], BASELINES, untuned=[faster])
    columns = {column.heading: column.fields for column in table.columns}
    assert columns["method"] == ["NLCG PR+ (one trial)", "Muon", "SGD (one trial)"]
    assert table.best == [1]
    assert columns["learning rate"] == ["not tuned", "0.1", "0.1"]
    assert columns["steps to objective"] == ["8", "10", "–"]
    assert columns["of best baseline"] == ["0.80", "1.00", "–"]
    assert columns["gradient-equivalents to objective"] == ["16", "20", "–"]


def test_of_baselines_that_end_at_the_floor_the_first_there_is_the_best():
    early = cell("muon", [1.0] * 5 + [1e-8] * 10)
    late = cell("sgd", [1.0] * 8 + [1e-9] * 7)
    assert best_baseline([late, early], BASELINES) is early
    assert smoothed_losses(late)[-1] == smoothed_losses(early)[-1] == 1e-6
    assert (steps_to(early, 1e-6), steps_to(late, 1e-6)) == (10, 13)


def test_a_run_shorter_than_the_window_reaches_nothing():
    short = cell("sgd", [2.0, 1.0])
    assert steps_to(short, 5.0) is None
    assert best_baseline([short], BASELINES) is None


def test_a_record_that_begins_late_has_the_steps_that_it_recorded():
    falling = np.linspace(2.0, 0.2, 10)
    late = cell("sgd", falling, falling)
    whole, second = late.records
    alone = Cell((dataclasses.replace(second, steps=second.steps[3:]),))
    late = Cell((whole, *alone.records))
    assert (late.steps, alone.steps) == (10, 10)
    np.testing.assert_allclose(smoothed_losses(late)[4:], falling[2:8], atol=1e-12)
    assert steps_to(late, 0.9) == steps_to(alone, 0.9) == 9
    assert steps_to(alone, 5.0) == 8  # the first with a whole window
    seconds = longest_series(alone, "seconds")
    np.testing.assert_allclose(seconds[2:5], [np.nan, 2.0, 2.5])
