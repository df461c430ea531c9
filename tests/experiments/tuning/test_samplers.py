import math

import numpy as np
import pytest

from experiments.config import RunConfig
from experiments.optimizers import search_space
from experiments.tuning.samplers import grid, halton, log_grid, with_values


def test_a_grid_is_centered():
    assert log_grid(0.1, 3, 2.0) == pytest.approx([0.05, 0.1, 0.2])
    assert log_grid(0.1, 4, 4.0) == pytest.approx([0.0125, 0.05, 0.2, 0.8])


def test_each_variant_gets_the_grid_as_a_search():
    searches = grid(0.1, 3, 2.0, [{"momentum": 0.8}, {"momentum": 0.9}])
    assert [[p["momentum"] for p in s] for s in searches] == [[0.8] * 3, [0.9] * 3]
    for search in searches:
        rates = [point["learning_rate"] for point in search]
        assert rates == pytest.approx([0.05, 0.1, 0.2])
    ((one,),) = grid(0.1, 1, 2.0)
    assert one == {"learning_rate": 0.1}


def test_halton_points_are_the_same_places_for_all():
    roles = ("learning_rate", "memory")
    nesterov, adamw = search_space("nesterov", {}), search_space("adamw", {})
    (points,) = halton(nesterov, roles, 16, 0)
    (first,) = halton(nesterov, roles, 5, 0)
    assert points[:5] == first
    assert points != halton(nesterov, roles, 16, 1)[0]
    assert set(points[0]) == {"learning_rate", "momentum"}
    rates = nesterov.dimensions["learning_rate"]
    places = np.log(np.array([p["learning_rate"] for p in points]) / rates.low)
    places /= math.log(rates.high / rates.low)
    # A Halton sequence in base two: one point in each sixteenth.
    assert sorted(np.floor(16 * places).astype(int)) == list(range(16))
    (others,) = halton(adamw, roles, 16, 0)
    np.testing.assert_allclose(
        [p["momentum"] for p in points], [p["b1"] for p in others]
    )
    ((point,),) = halton(search_space("sgd", {}), roles, 1, 0)
    assert set(point) == {"learning_rate"}


def test_values_find_their_place():
    config = RunConfig(epochs=8, l2=1e-4, optimizer_options={"b2": 0.9})
    values = {"learning_rate": 0.2, "warmup_fraction": 0.25, "b1": 0.8}
    found = with_values(config, values)
    assert (found.learning_rate, found.warmup_epochs, found.l2) == (0.2, 2.0, 1e-4)
    assert found.optimizer_options == {"b2": 0.9, "b1": 0.8}
    assert with_values(config, {"weight_decay": 0.1}).l2 == 0.0
    assert with_values(config, {"l2": 0.1}).l2 == 0.1
