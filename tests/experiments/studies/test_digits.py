"""The demo: its budget."""

from experiments.studies.digits import DEMO, METHODS, NAMES
from experiments.studies.large_batch.plan import sweep_of


def test_baselines_have_equal_trials_and_the_untouched_preset_none():
    for place in DEMO.places:
        sweep = sweep_of(DEMO, place, METHODS)
        counts = [sum(map(len, method.searches)) for method in sweep.methods]
        assert dict(zip(NAMES, counts, strict=True)) == {
            "nesterov": 12,
            "adam": 12,
            "muon": 12,
            "large_batch_nlcg": 8,
            "tuning_free_nlcg": 0,
        }
        # And two more beyond an edge, four near the best one, three final seeds.
        assert sweep.most_runs == 3 * 18 + 14 + 5 * 3
        untouched = sweep.methods[-1].config
        assert untouched.optimizer_options == {"num_steps": 60}
        assert untouched.schedule == "constant"
        assert untouched.learning_rate == 1.0
