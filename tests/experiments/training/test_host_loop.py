"""The loop over micro-batches on the host against the compiled one."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from experiments import data
from experiments.config import RunConfig
from experiments.training import compile_program, make_program, run_epochs
from experiments.training.host_loop import HostLoop, compile_host_loop, takes_host_loop

CONFIG = RunConfig(
    dataset="cifar100",
    model="resnet8_narrow",
    augmentation="crop_flip",
    optimizer="nlcg",
    learning_rate=0.01,
    l2=1e-3,
    ema_decay=0.9,
    batch_size=24,
    micro_batches=3,
    epochs=2,
    epochs_per_report=2,
    steps_per_call=1,
)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, [40, 8, 8, 3], np.uint8)
    split = data.Split(jax.numpy.asarray(pixels), jax.numpy.arange(40) % 10)
    return data.Dataset(10, split, None, split)


def train(config, dataset):
    program = make_program(config, dataset)
    compiled = compile_program(program, dataset)
    state = program.init(0, config.learning_rate)
    return compiled, list(run_epochs(compiled, config, dataset, state))


@pytest.mark.parametrize("batch_size", [24, pytest.param(None, marks=pytest.mark.slow)])
def test_its_steps_are_those_of_the_compiled_loop(images, batch_size):
    # 24 of 40: the second step takes examples of two epochs. None: the whole set.
    parts = 3 if batch_size else 4
    config = dataclasses.replace(CONFIG, batch_size=batch_size, micro_batches=parts)
    compiled, (host,) = train(config, images)
    assert isinstance(compiled.train, HostLoop)
    _, (whole,) = train(
        dataclasses.replace(config, micro_batch_loop="compiled"), images
    )
    assert len(host.metrics["loss"]) == (3 if batch_size else 2)
    # The same operations in programs that are fused differently: roundings of 2^-24,
    # some tens of them in the sums of an activation, over eight layers and three steps.
    tolerance = 3 * 8 * 30 * 2**-24
    for name, found in host.metrics.items():
        np.testing.assert_allclose(
            found, whole.metrics[name], rtol=tolerance, atol=1e-6, err_msg=name
        )
    for part in ("params", "average", "batch_stats"):
        chex.assert_trees_all_close(
            getattr(host.state, part),
            getattr(whole.state, part),
            rtol=tolerance,
            atol=1e-6,
        )


def test_the_programs_do_not_grow_with_the_number_of_micro_batches(images):
    sizes, memory = set(), set()
    for parts in (2, 4):
        config = dataclasses.replace(
            CONFIG, batch_size=4 * parts, micro_batches=parts, optimizer="sgd"
        )
        config = dataclasses.replace(config, optimizer_options={})
        program = make_program(config, images)
        add = compile_host_loop(program, images.train).add
        sizes.add(add.as_text().count("\n"))
        memory.add(add.memory_analysis().temp_size_in_bytes)
    # All but the random keys of the augmentation.
    assert max(sizes) < 1.05 * min(sizes)
    assert len(memory) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer_options": {"preconditioner": "equilibration"}},
            "optimizer='nlcg' .* evaluates .*value_fn of the whole batch",
        ),
        ({"partitioning": "shard_map"}, "partitioning='shard_map'"),
        ({"axis_types": "explicit"}, "axis_types='explicit'"),
    ],
)
def test_what_it_cannot_do_is_refused_or_left_to_the_compiled_loop(
    changes, message, images
):
    config = dataclasses.replace(CONFIG, **changes)
    assert not takes_host_loop(make_program(config, images))
    asked = dataclasses.replace(config, micro_batch_loop="host")
    with pytest.raises(ValueError, match=f"micro_batch_loop='host'.*{message}"):
        takes_host_loop(make_program(asked, images))


def test_one_micro_batch_is_compiled_as_a_whole(images):
    config = dataclasses.replace(CONFIG, micro_batches=1)
    assert not takes_host_loop(make_program(config, images))


def test_a_report_may_be_yielded_in_parts(images):
    config = dataclasses.replace(CONFIG, optimizer="sgd", optimizer_options={})
    _, (whole,) = train(config, images)
    program = make_program(config, images)
    compiled = compile_program(program, images)
    state = program.init(0, config.learning_rate)
    reports = list(run_epochs(compiled, config, images, state, pause_seconds=1e-9))
    assert [r.complete for r in reports] == [False, False, True]
    assert [(r.number, int(r.state.step)) for r in reports[-1:]] == [(1, 3)]
    losses = np.concatenate([r.metrics["loss"] for r in reports])
    np.testing.assert_array_equal(losses, whole.metrics["loss"])
