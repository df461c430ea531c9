"""The same numbers on every mesh, in both forms of the step."""

from typing import NamedTuple

import chex
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.config import RunConfig
from experiments.optimizers import choice_of
from experiments.training import compile_program, make_program, run_epochs

pytestmark = pytest.mark.devices

STEPS = 20
EXPLICIT = {"axis_types": "explicit"}
LAYOUTS = {
    "data": {},
    "sharded": {"data_devices": 1, "shard_devices": None},
    "hybrid": {"shard_devices": 2},
    "explicit": {**EXPLICIT, "shard_devices": 2},
    "shard_map": {"partitioning": "shard_map"},
    "shard_map_hybrid": {"partitioning": "shard_map", "shard_devices": 2},
}
# Further pairs of what is above, for one optimizer.
EXPLICIT_LAYOUTS = {
    "explicit_data": EXPLICIT,
    "explicit_sharded": {**EXPLICIT, "data_devices": 1, "shard_devices": None},
    "explicit_shard_map": {**EXPLICIT, "partitioning": "shard_map", "shard_devices": 2},
}
ALL_LAYOUTS = {**LAYOUTS, **EXPLICIT_LAYOUTS}
# These split over both axes what the others of `LAYOUTS` split over one of them.
BOTH_AXES = ("hybrid", "explicit", "shard_map_hybrid")
ONE_AXIS = ("data", "sharded", "shard_map")


class Case(NamedTuple):
    """An optimizer with a learning rate at which it moves; see `check_same_numbers`."""

    learning_rate: float
    amplification: float = 1
    optimizer: str = ""  # with its options; the name of the case, if not given
    micro_batches: int = 1


CASES = {
    "nlcg,rule=fr": Case(0.1),
    "nlcg,preconditioner=rms": Case(1e-3),
    "nlcg,rule=hs,preconditioner=secant": Case(0.1),  # Hessian-vector products
    # Matrices; with an average of β their weights would hardly move.
    "nlcg,rule=fr,preconditioner=orthogonal,beta_max=1.0,beta_smoothing=0.0": Case(
        1e-3
    ),
    "nlcg,preconditioner=kronecker": Case(1e-3, 30),
    "nlcg,rule=daniel": Case(0.1),
    "nlcg,rule=constant,beta=0.0,step=subspace": Case(0.1),
    "paper_nlcg,rule=pr,step_control=online": Case(0.1),
}
# Sampled diagonals, half-batches, and the step size from ratios of slopes.
FURTHER_CASES = {
    "hutchinson": Case(0.01, 1, "nlcg,preconditioner=hutchinson,power=0.5"),
    "equilibration": Case(
        0.01, 10, "nlcg,rule=fr,preconditioner=equilibration,power=0.5"
    ),
    "bartlett": Case(0.01, 1, "nlcg,rule=fr,preconditioner=bartlett,power=0.5"),
    "across_halves": Case(
        1e-3,
        1,
        "nlcg,preconditioner=rms,across_halves=true",
        micro_batches=2,
    ),
    "tuning_free": Case(0.1, 10, "tuning_free_nlcg"),
}
ALL_CASES = {**CASES, **FURTHER_CASES}


def trained(name, few_digits, devices, **layout):
    """The state after 20 steps, the program and the state before."""
    case = ALL_CASES[name]
    chosen = choice_of(case.optimizer or name)
    settings = {"micro_batches": case.micro_batches, **layout}
    config = RunConfig(
        batch_size=16,
        epochs=5,
        epochs_per_report=5,
        optimizer=chosen.name,
        optimizer_options=chosen.options,
        learning_rate=case.learning_rate,
        **settings,
    )
    program = make_program(config, few_digits, jax.devices()[:devices])
    compiled = compile_program(program, few_digits)
    (report,) = run_epochs(
        compiled, config, few_digits, program.init(0, config.learning_rate)
    )
    assert report.state.step == STEPS
    return report, program


def weights(state):
    return jax.device_get(state.params)


@pytest.fixture(scope="module")
def alone(few_digits):
    """Runs on one device, each trained once."""
    runs = {}

    def run(optimizer):
        if optimizer not in runs:
            runs[optimizer] = trained(optimizer, few_digits, 1)[0]
        return runs[optimizer]

    return run


def check_same_numbers(optimizer, few_digits, alone, devices, layout):
    report, program = trained(optimizer, few_digits, devices, **ALL_LAYOUTS[layout])
    expected = alone(optimizer)
    # Derived: a sum over devices runs in another order, a rounding of 2^-24 for each of
    # some ten sums of a layer, in each of 20 steps; next to zero, that of the largest
    # weight, which is of the order of 1. Not derived: how a step carries the roundings
    # of those before. Measured on eight devices, fully sharded, gradients, secants,
    # second moments and orthogonal matrices reach a fiftieth of the sum, sampled
    # diagonals and the step size from slopes 1.5 times it, inverse fourth roots of
    # Kronecker factors of 16 examples, which are nearly singular, 7 times.
    # `amplification` allows for each of them a few times more.
    rtol = 10 * STEPS * 2**-24 * ALL_CASES[optimizer].amplification
    start = weights(program.init(0, 1.0))
    # Far from where it began, in these units: equal because nothing moves is no proof.
    moves = jax.tree.map(lambda x, y: abs(x - y), weights(expected.state), start)
    moves = np.concatenate([np.ravel(x) for x in jax.tree.leaves(moves)])
    assert np.median(moves) > 100 * (10 * STEPS * 2**-24)
    assert np.median(moves) > 10 * rtol
    chex.assert_trees_all_close(
        weights(report.state), weights(expected.state), rtol=3 * rtol, atol=rtol
    )
    np.testing.assert_allclose(
        report.metrics["loss"], expected.metrics["loss"], rtol=3 * rtol
    )
    # The state is laid out like its parameter, before the first step and after the
    # last; the 64x64 matrix is large enough to be split.
    shards = ALL_LAYOUTS[layout].get("shard_devices", 1) or devices
    for state in (program.init(0, 1.0), report.state):
        kernel = state.params["Dense_0"]["kernel"]
        spec = P(None, "shard") if shards > 1 else P()
        wanted = NamedSharding(kernel.sharding.mesh, spec)
        like_kernel = [
            leaf
            for leaf in jax.tree.leaves(state)
            if leaf.shape == kernel.shape and leaf.dtype == kernel.dtype
        ]
        assert len(like_kernel) >= 3  # weights of two layers and a state or more
        for leaf in like_kernel:
            assert leaf.sharding.is_equivalent_to(wanted, 2)
            if layout.startswith("explicit"):
                assert jax.typeof(leaf) == jax.typeof(kernel)
                assert jax.typeof(leaf).sharding.spec == P(
                    *spec, *[None] * (2 - len(spec))
                )


@pytest.mark.slow
@pytest.mark.parametrize("layout", BOTH_AXES)
@pytest.mark.parametrize("optimizer", CASES)
def test_every_optimizer_on_eight_devices(optimizer, layout, few_digits, alone):
    check_same_numbers(optimizer, few_digits, alone, 8, layout)


# Element by element, with products with the Hessian, and by matrices.
@pytest.mark.slow
@pytest.mark.parametrize("layout", ONE_AXIS)
@pytest.mark.parametrize(
    "optimizer",
    [
        "nlcg,preconditioner=rms",
        "nlcg,rule=hs,preconditioner=secant",
        "nlcg,preconditioner=kronecker",
    ],
)
def test_layouts_of_one_axis_on_eight_devices(optimizer, layout, few_digits, alone):
    check_same_numbers(optimizer, few_digits, alone, 8, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sharded", "shard_map_hybrid"])
@pytest.mark.parametrize("optimizer", FURTHER_CASES)
def test_further_optimizers_on_eight_devices(optimizer, layout, few_digits, alone):
    check_same_numbers(optimizer, few_digits, alone, 8, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", EXPLICIT_LAYOUTS)
def test_explicit_axes_in_every_layout(layout, few_digits, alone):
    check_same_numbers("nlcg,preconditioner=rms", few_digits, alone, 8, layout)


# Two devices along one axis, and with an explicit one of length 1; four along both.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "devices"),
    [
        *((layout, 2) for layout in (*ONE_AXIS, "explicit")),
        *((layout, 4) for layout in ("hybrid", "shard_map_hybrid")),
    ],
)
def test_fewer_devices(layout, devices, few_digits, alone):
    check_same_numbers(
        "nlcg,rule=hs,preconditioner=secant", few_digits, alone, devices, layout
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data", "hybrid", "shard_map"])
def test_micro_batches_on_eight_devices(layout, few_digits):
    one, _ = trained("nlcg,preconditioner=rms", few_digits, 1)
    many, _ = trained(
        "nlcg,preconditioner=rms", few_digits, 8, micro_batches=2, **LAYOUTS[layout]
    )
    rtol = 10 * STEPS * 2**-24  # as above
    chex.assert_trees_all_close(
        weights(many.state), weights(one.state), rtol=3 * rtol, atol=rtol
    )
