"""SWAP: layouts of the workers agree, the average and its statistics, and its costs."""

import dataclasses
import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data, models
from experiments.config import RunConfig
from experiments.data import preprocessing
from experiments.swap import __main__ as swap
from experiments.swap.config import SwapConfig
from experiments.swap.phases import train_swap
from experiments.swap.records import record_swap, swap_table
from experiments.swap.workers import train_workers
from experiments.training import (
    DivergedError,
    Program,
    compile_program,
    make_program,
    run_epochs,
)
from experiments.training.batch_statistics import recomputed_statistics
from experiments.training.evaluation import batches_of

LARGE = RunConfig(
    model="mlp",
    optimizer="nlcg",
    optimizer_options={"preconditioner": "rms"},
    batch_size=64,
    epochs=12,
    learning_rate=0.01,
)
SMALL = dataclasses.replace(
    LARGE,
    optimizer="nesterov",
    optimizer_options={},
    batch_size=8,
    epochs=2,
    learning_rate=0.02,
    seed=5,
)


@pytest.fixture
def four_devices(monkeypatch):
    """Four of the virtual devices, whatever their number."""
    devices = jax.devices()[:4]
    assert len(devices) == 4  # tests/conftest.py asks for eight
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    monkeypatch.setattr(jax, "device_count", lambda *_: 4)
    return devices


@pytest.fixture(scope="module")
def results(few_digits):
    def swap(layout, workers=4):
        return train_swap(
            SwapConfig(LARGE, SMALL, workers=workers, layout=layout), few_digits
        )

    return {layout: swap(layout) for layout in ("sequential", "vmap")}


def assert_same_networks(one, other):
    for mine, theirs in zip(
        [*one.workers, one.averaged], [*other.workers, other.averaged]
    ):
        for a, b in zip(jax.tree.leaves(mine.params), jax.tree.leaves(theirs.params)):
            # Sixteen steps in float32, in another order of summation.
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_workers_together_are_those_one_by_one(results):
    assert_same_networks(results["sequential"], results["vmap"])


@pytest.mark.slow
@pytest.mark.devices
def test_workers_along_a_mesh_are_those_on_one_device(
    results, few_digits, four_devices
):
    found = train_swap(SwapConfig(LARGE, SMALL, layout="mesh"), few_digits)
    assert_same_networks(results["vmap"], found)
    with pytest.raises(ValueError, match="workers=6 cannot be shared equally by 4"):
        train_swap(SwapConfig(LARGE, SMALL, workers=6, layout="mesh"), few_digits)


@pytest.mark.slow
def test_workers_differ_by_their_order_and_are_averaged(results):
    result = results["sequential"]
    kernels = np.array([w.params["Dense_0"]["kernel"] for w in result.workers])
    assert all(np.abs(kernels[0] - kernel).max() > 1e-4 for kernel in kernels[1:])
    np.testing.assert_allclose(
        result.averaged.params["Dense_0"]["kernel"], kernels.mean(0), rtol=1e-6
    )
    assert result.averaged.train.loss < result.large.train.loss


@pytest.mark.slow
def test_costs_are_charged(results):
    result = results["sequential"]
    # Twelve full batches of 64 images, then four workers twice through them.
    assert (result.large_steps, result.small_steps) == (12, 16)
    assert result.gradients == (12 * 64, 4 * 2 * 64)
    assert min(result.seconds) > 0


def test_the_first_phase_ends_at_an_accuracy(few_digits):
    config = SwapConfig(LARGE, SMALL, workers=1, stop_accuracy=0.5)
    result = train_swap(config, few_digits)
    assert 1 < result.large_steps < 12
    # The mean accuracy of the batches before the step reached it, so that of the
    # weights behind it, on a full batch and with a falling loss, is no lower.
    assert result.large.train.accuracy >= 0.5


@pytest.mark.slow
def test_the_first_phase_ends_at_an_epoch(few_digits):
    config = SwapConfig(LARGE, SMALL, workers=1, stop_epoch=5)
    assert train_swap(config, few_digits).large_steps == 5


def test_a_worker_that_diverges_is_reported(few_digits):
    config = SwapConfig(
        LARGE, dataclasses.replace(SMALL, learning_rate=1e30), layout="vmap"
    )
    with pytest.raises(DivergedError, match="learning_rate=1e\\+30"):
        train_swap(config, few_digits)


@pytest.mark.parametrize("layout", ["sequential", "vmap"])
def test_weights_of_a_worker_that_overflow_are_reported(
    layout, few_digits, monkeypatch
):
    train = Program.train

    def overflowing(program, state, split):
        """The last update of a worker overflows, after a finite loss."""
        state, metrics = train(program, state, split)
        factor = jnp.where(state.step == 16, jnp.inf, 1.0)
        params = jax.tree.map(lambda leaf: factor * leaf, state.params)
        return state._replace(params=params), metrics

    monkeypatch.setattr(Program, "train", overflowing)
    large = dataclasses.replace(LARGE, epochs=1)
    with pytest.raises(DivergedError, match="weights .*became infinite or nan .*nest"):
        train_swap(SwapConfig(large, SMALL, workers=2, layout=layout), few_digits)


@pytest.mark.parametrize("layout", ["sequential", "vmap"])
def test_workers_leave_the_weights_that_evaluation_takes(layout, few_digits):
    small = dataclasses.replace(
        SMALL, optimizer="schedule_free_adamw", learning_rate=4.0, batch_size=16
    )
    program = make_program(small, few_digits, devices=jax.devices()[:1])
    state = program.init(small.seed, small.learning_rate)
    start = jax.device_get(state.params)
    config = SwapConfig(LARGE, small, workers=2, layout=layout)
    workers, _, _ = train_workers(config, few_digits, start, {})
    state = state._replace(key=jax.random.fold_in(state.key, 1))
    for report in run_epochs(
        compile_program(program, few_digits), small, few_digits, state
    ):
        state = report.state
    expected = optax.contrib.schedule_free_eval_params(state.opt_state, state.params)
    for found, average, last in zip(
        *map(jax.tree.leaves, (workers.params, expected, state.params))
    ):
        # Eight steps in float32, in another order of summation.
        np.testing.assert_allclose(found[1], average, rtol=2e-4, atol=2e-5)
        assert np.abs(found[1] - last).max() > 1e-3
    assert workers.own_averages  # so their statistics are recomputed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"layout": "pmap"}, r"layout='pmap' is unknown; allowed are \['seq"),
        ({"stop_epoch": 0}, "stop_epoch=0 must be at least 1, or None"),
        ({"stop_accuracy": 1.5}, "stop_accuracy=1.5 must be above 0 and at most 1"),
        (
            {"small": dataclasses.replace(SMALL, model="cnn")},
            "large has model='mlp' and small has model='cnn'",
        ),
        (
            {"small": dataclasses.replace(SMALL, standardization="imagenet")},
            "large has standardization='image' and small has standardization='imagen",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SwapConfig(**{"large": LARGE, "small": SMALL, **settings})


class Normalized(nn.Module):
    momentum: float

    @nn.compact
    def __call__(self, images, *, train):
        return nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(
            images
        )


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_statistics_are_means_over_the_batches(momentum):
    images = np.random.default_rng(0).normal(3.0, 2.0, (20, 2, 2, 3))
    images = images.astype(np.float32)
    split = data.Split(jnp.asarray(images), jnp.zeros([20], jnp.int32))
    model = Normalized(momentum)
    variables = model.init(jax.random.key(0), split.images, train=False)
    found = recomputed_statistics(
        model,
        variables["params"],
        variables["batch_stats"],
        batches_of(split, 8),
        preprocessing.standardize,
    )["BatchNorm_0"]
    batches, shares = np.split(images, [8, 16]), np.array([0.4, 0.4, 0.2])
    for name, statistic in (("mean", np.mean), ("var", np.var)):
        expected = shares @ [statistic(b, axis=(0, 1, 2)) for b in batches]
        # One minus a momentum of .99 is known to a part in 1e5.
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)


def test_a_model_without_batch_normalization_has_none_to_recompute(few_digits):
    model = models.build("mlp", 10)
    found = recomputed_statistics(
        model, {}, {}, [few_digits.train], preprocessing.standardize
    )
    assert found == {}


@pytest.mark.slow
def test_the_averaged_weights_get_statistics_of_their_own():
    images = np.random.default_rng(0).integers(0, 256, [32, 8, 8, 3], np.uint8)
    split = data.Split(jnp.asarray(images), jnp.arange(32) % 10)
    dataset = data.Dataset(10, split, split, split)
    normed = {
        "model": "cnn",
        "standardization": "imagenet",
        "optimizer": "sgd",
        "optimizer_options": {},
        "epochs": 2,
        "steps_per_call": 1,  # convolutions on a CPU
    }
    # A batch of the workers is smaller than a ghost batch of the first phase.
    large = dataclasses.replace(LARGE, **normed, batch_size=32, ghost_batch_size=16)
    small = dataclasses.replace(SMALL, **normed, batch_size=8, ghost_batch_size=4)
    result = train_swap(SwapConfig(large, small, workers=2), dataset)
    found, model = result.averaged, models.build("cnn", 10)

    def recompute(standardize):
        batches = batches_of(split, 8)
        before = result.large.batch_stats
        return recomputed_statistics(model, found.params, before, batches, standardize)

    expected = recompute(preprocessing.standardize_channels)
    chex.assert_trees_all_close(found.batch_stats, expected, rtol=1e-6)
    for other in (
        result.large.batch_stats,
        result.workers[0].batch_stats,
        recompute(preprocessing.standardize),
    ):
        means = [s["BatchNorm_0"]["mean"] for s in (found.batch_stats, other)]
        assert np.abs(means[0] - means[1]).max() > 1e-3
    variables = {"params": found.params, "batch_stats": expected}
    logits = model.apply(
        variables, preprocessing.standardize_channels(split.images), train=False
    )
    assert found.train.accuracy == np.mean(logits.argmax(-1) == split.labels)


def test_a_record_holds_figures_and_costs(few_digits, tmp_path):
    large = dataclasses.replace(LARGE, epochs=2)
    config = SwapConfig(large, SMALL, workers=2, stop_epoch=2, layout="vmap")
    path = tmp_path / "swap" / "run.json"
    line = record_swap(path, config, few_digits)
    found = json.loads(path.read_text(encoding="utf-8"))
    settings = {"workers": 2, "stop_accuracy": None, "stop_epoch": 2, "layout": "vmap"}
    assert {name: found[name] for name in settings} == settings
    assert found["large_epochs"] == 2.0
    assert found["worker_epochs"] == 4.0
    assert len(found["after_workers"]) == 2
    assert found["averaged"] == line["averaged"]
    averaged = 100 * found["averaged"]["test_accuracy"]
    (row,) = swap_table([path]).splitlines()[2:]
    assert row.startswith("| NLCG PR+, RMS | ")
    assert f"| {averaged:.1f} [{averaged:.1f}, {averaged:.1f}] | 2 + 16 |" in row
    assert row.endswith("| 2.0 + 4.0 |")


def test_a_run_that_diverges_leaves_a_record_and_a_row(few_digits, tmp_path):
    large = dataclasses.replace(LARGE, epochs=1)
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    record_swap(good, SwapConfig(large, SMALL, workers=1), few_digits)
    config = SwapConfig(large, dataclasses.replace(SMALL, learning_rate=1e30))
    with pytest.raises(DivergedError):
        record_swap(bad, config, few_digits)
    assert "1e+30" in json.loads(bad.read_text(encoding="utf-8"))["stopped"]
    (row,) = swap_table([good, bad]).splitlines()[2:]
    assert row.startswith("| NLCG PR+, RMS (1 of 2 diverged) | ")
    assert row.endswith(swap_table([good]).splitlines()[2].partition("PR+, RMS")[2])
    (row,) = swap_table([bad]).splitlines()[2:]
    assert row == "| NLCG PR+, RMS (1 of 1 diverged) | – | – | – | – | – |"


def write_to(path, config, dataset):
    path.write_text("")


def test_the_command_leaves_a_record_and_refuses_to_replace_it(
    few_digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(data, "load", lambda name, options: few_digits)
    path = tmp_path / "run.json"
    options = ["--config.large.batch-size=64", "--config.large.epochs=1"]
    options += ["--config.small.epochs=1", "--config.workers=1", f"--record={path}"]
    swap.main(options)
    assert "1.0 + 1.0 epochs" in " ".join(capsys.readouterr().out.split())
    assert json.loads(path.read_text(encoding="utf-8"))["small_steps"] == 2
    with pytest.raises(SystemExit, match="error: the record .* exists"):
        swap.main(options)
    monkeypatch.setattr(swap, "record_swap", write_to)
    with pytest.raises(SystemExit, match=r"error: .*Not a directory: .*run.json/swap"):
        swap.main([*options[:-1], f"--record={path / 'swap.json'}"])
    with pytest.raises(SystemExit):
        swap.main([*options, "--config.small.model=cnn"])
    assert "large has model='mlp' and small has" in capsys.readouterr().err
