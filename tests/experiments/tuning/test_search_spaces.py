from experiments.config import RunConfig
from experiments.tuning.spaces import with_values


def test_values_find_their_place():
    config = RunConfig(epochs=8, l2=1e-4, optimizer_options={"b2": 0.9})
    values = {"learning_rate": 0.2, "warmup_fraction": 0.25, "b1": 0.8}
    found = with_values(config, values)
    assert (found.learning_rate, found.warmup_epochs, found.l2) == (0.2, 2.0, 1e-4)
    assert found.optimizer_options == {"b2": 0.9, "b1": 0.8}
    assert with_values(config, {"weight_decay": 0.1}).l2 == 0.0
    assert with_values(config, {"l2": 0.1}).l2 == 0.1
