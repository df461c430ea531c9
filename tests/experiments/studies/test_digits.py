"""The demo: its budget."""

import pytest

from experiments.studies.digits import METHODS, SMALL, Budget, sweep_of


def test_all_methods_have_the_same_budget_around_their_centers():
    for batch_size in (256, None):
        sweep = sweep_of(Budget(), batch_size)
        assert len(sweep.methods) == len(METHODS) == 11
        for method, (choice, center) in zip(sweep.methods, METHODS):
            config = method.config
            assert (config.optimizer, config.optimizer_options) == choice
            assert config.epochs * 1024 == 80 * (batch_size or 1024)
            (search,) = method.searches
            rates = [point["learning_rate"] for point in search]
            assert rates == pytest.approx([center * 2.0**k for k in range(-3, 4)])
        # Trials with two seeds, three extensions, three final seeds.
        assert sweep.most_runs == 11 * ((7 + 3 * 2) * 2 + 3)
    assert sweep_of(SMALL, 256).most_runs == 3 * (3 + 2 + 2)
