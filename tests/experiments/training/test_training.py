import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data, models, optimizers
from experiments.config import RunConfig
from experiments.optimizers import registration
from experiments.training import (
    DivergedError,
    check_finite,
    compile_program,
    evaluation,
    make_program,
    run_epochs,
)
from experiments.training.losses import cross_entropies
from experiments.weight_decay import decay_mask
from tests.experiments.training.quick_runs import quick, train


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "learning_rate": 0.01},
        {
            "optimizer": "nlcg",
            "optimizer_options": {"rule": "fr", "preconditioner": "rms"},
            "learning_rate": 0.003,
        },
        {"optimizer": "paper_nlcg", "learning_rate": 0.3, "batch_size": None},
    ],
    ids=lambda settings: settings["optimizer"],
)
def test_a_few_digits_are_learned_by_heart(settings, few_digits):
    config = quick(**settings)
    program, reports = train(config, few_digits)
    before = program.evaluate(program.init(0, 1.0), few_digits.train)
    after = program.evaluate(reports[-1].state, few_digits.train)
    assert before.loss > 2.0
    assert after.loss < 0.8
    assert after.accuracy > 0.9
    steps = program.steps_per_call
    assert reports[-1].state.step == steps
    assert {len(column) for column in reports[-1].metrics.values()} == {steps}


@pytest.mark.slow
def test_vmapped_and_sequential_grids_give_the_same_runs(few_digits):
    config = quick(optimizer_options={"preconditioner": "rms"}, epochs=3)
    program = make_program(config, few_digits)
    rates = (0.001, 0.004)
    states = [program.init(0, rate) for rate in rates]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    _, together = jax.jit(jax.vmap(program.train, in_axes=(0, None)))(
        stacked, few_digits.train
    )
    compiled = compile_program(program, few_digits)
    for row, rate in enumerate(rates):
        state = program.init(0, rate)
        (alone,) = run_epochs(compiled, config, few_digits, state)
        np.testing.assert_allclose(
            together["loss"][row], alone.metrics["loss"], rtol=2e-4
        )
        np.testing.assert_allclose(alone.metrics["learning_rate"], rate, rtol=1e-6)


def test_sgd_takes_the_steps_of_a_plain_loop(few_digits):
    config = quick(
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=None,
        epochs=4,
        epochs_per_report=2,
        l2=0.01,
    )
    program, reports = train(config, few_digits)
    assert len(reports) == 2
    model = models.build("mlp", 10)

    def loss_fn(params):
        logits = model.apply({"params": params}, few_digits.train.images, train=True)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, few_digits.train.labels
        )
        return loss.mean() + 0.005 * optax.tree.norm(params, squared=True)

    params, losses = program.init(0, 0.1).params, []
    for _ in range(4):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        losses.append(loss)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    recorded = np.concatenate([report.metrics["loss"] for report in reports])
    np.testing.assert_allclose(recorded, losses, rtol=1e-5)
    for mine, plain in zip(
        jax.tree.leaves(reports[-1].state.params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)


def test_an_epoch_meets_every_example_once_in_a_new_order(few_digits):
    # At a rate that changes nothing, the mean of the batches' losses is that of all
    # examples only if none is left out or met twice.
    config = quick(optimizer="sgd", learning_rate=1e-30, batch_size=8, epochs=2)
    program, (report,) = train(config, few_digits)
    first, second = report.metrics["loss"].reshape(2, -1)
    whole = program.evaluate(report.state, few_digits.train).loss
    np.testing.assert_allclose([first.mean(), second.mean()], whole, rtol=1e-5)
    assert not np.allclose(np.sort(first), np.sort(second), rtol=1e-3)


@pytest.mark.devices
def test_a_batch_is_split_over_the_devices(few_digits):
    devices = jax.device_count()
    program = make_program(quick(), few_digits)
    state = program.init(0, 0.1)
    assert all(
        leaf.sharding.is_fully_replicated and len(leaf.devices()) == devices
        for leaf in jax.tree.leaves(state)
    )
    with pytest.raises(
        ValueError, match=f"batch_size=12 gives .* allowed are multiples of {devices}"
    ):
        make_program(quick(batch_size=12), few_digits)


def test_normalizations_do_not_decay_whatever_they_are_called():
    names = ("BatchNorm_0", "projection_norm", "LayerNorm_1", "Conv_0", "Dense_0")
    mask = decay_mask({"Block_0": {name: {"scale": 0} for name in names}})
    found = [mask["Block_0"][name]["scale"] for name in names]
    assert found == [False, False, False, True, True]


def test_a_loss_that_is_not_finite_is_reported_with_its_step(few_digits):
    config = quick(optimizer="sgd", learning_rate=1e30, epochs=1)
    _, (report,) = train(config, few_digits)
    with pytest.raises(
        DivergedError, match=r"the loss became (nan|inf) at step [1-3] with .*'sgd'"
    ):
        check_finite(report, config)


def test_weights_that_are_not_finite_are_reported_after_a_finite_loss(few_digits):
    config = quick(optimizer="sgd", learning_rate=1e38, l2=1e3, batch_size=None)
    config = dataclasses.replace(config, epochs=1, epochs_per_report=1)
    _, (report,) = train(config, few_digits)
    assert np.isfinite(report.metrics["loss"]).all()
    with pytest.raises(
        DivergedError, match=r"weights became infinite or nan at step 0 with .*1e\+38;"
    ):
        check_finite(report, config)


def test_evaluation_takes_the_average_of_the_weights(few_digits):
    config = quick(optimizer="sgd", learning_rate=0.5, batch_size=None, epochs=5)
    config = dataclasses.replace(config, ema_decay=0.25, epochs_per_report=1)
    program = make_program(config, few_digits)
    step = jax.jit(program.train)
    state = program.init(0, config.learning_rate)
    average = state.params
    for t in range(5):
        state, _ = step(state, few_digits.train)
        # 1/10, 2/11, then the bound: 3/12, 4/13 and 5/14 are not below it.
        decay = min(0.25, (1 + t) / (10 + t))
        average = jax.tree.map(
            lambda a, p, decay=decay: decay * a + (1 - decay) * p,
            average,
            state.params,
        )
    for mine, plain in zip(
        jax.tree.leaves(state.average), jax.tree.leaves(average), strict=True
    ):
        np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-7)
    averaged = program.evaluate(state, few_digits.train).loss
    of_weights = make_program(
        dataclasses.replace(config, ema_decay=0.0), few_digits
    ).evaluate(state, few_digits.train)
    swapped = program.evaluate(state._replace(average=state.params), few_digits.train)
    assert swapped.loss == of_weights.loss
    assert averaged != of_weights.loss


def test_the_steps_of_the_paper(few_digits):
    def steps(examples, **settings):
        images = jnp.zeros([examples, 1, 1, 1], jnp.uint8)
        split = data.Split(images, jnp.zeros([examples], jnp.int32))
        dataset = data.Dataset(10, split, None, split)
        config = RunConfig(epochs=200, epochs_per_report=20, **settings)
        return 10 * make_program(config, dataset).steps_per_call

    assert steps(50_000, batch_size=16384) == 610
    assert steps(50_000, batch_size=8192) == 1220


def test_passes_that_the_rounding_of_steps_loses_are_reported(few_digits, caplog):
    make_program(quick(batch_size=40, epochs=20), few_digits)  # 32 steps
    make_program(quick(batch_size=40, epochs=5), few_digits)  # 8 of 8
    assert not caplog.records
    make_program(quick(batch_size=40, epochs=20, epochs_per_report=1), few_digits)
    assert "batch_size=40 leaves 12.5 of epochs=20 passes" in caplog.text
    assert "greater epochs_per_report than 1, or a batch size" in caplog.text


def test_examples_left_over_are_met_in_the_next_step(few_digits):
    # Batches of 24 out of 64: eight steps are three epochs, each a permutation.
    config = quick(optimizer="sgd", learning_rate=1e-30, batch_size=24, epochs=3)
    program, (report,) = train(config, few_digits)
    assert program.steps_per_call == 8
    whole = program.evaluate(report.state, few_digits.train).loss
    np.testing.assert_allclose(report.metrics["loss"].mean(), whole, rtol=1e-5)


@pytest.fixture(scope="module")
def few_images():
    """Raw pixels whose class is plain to see: the brighter half."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (64, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(64) % 2
    images[labels == 0, :4] += 55
    images[labels == 1, 4:] += 55
    split = data.Split(jnp.asarray(images), jnp.asarray(labels, jnp.int32))
    return data.Dataset(2, split, None, split)


@pytest.mark.slow
def test_raw_pixels_are_augmented_anew_each_step_and_learned_in_bfloat16(few_images):
    config = quick(
        model="cnn",
        optimizer="sgd",
        learning_rate=1e-30,
        batch_size=None,
        epochs=2,
        compute_dtype="bfloat16",
    )
    _, (plain,) = train(config, few_images)
    assert plain.metrics["loss"][0] == plain.metrics["loss"][1]
    config = dataclasses.replace(config, augmentation="crop_flip")
    _, (augmented,) = train(config, few_images)
    assert augmented.metrics["loss"][0] != augmented.metrics["loss"][1]
    config = dataclasses.replace(
        config, optimizer="heavy_ball", learning_rate=0.1, augmentation="none"
    )
    config = dataclasses.replace(
        config, epochs=40, epochs_per_report=40, steps_per_call=1
    )
    program, (report,) = train(config, few_images)
    assert program.evaluate(report.state, few_images.train).accuracy > 0.9
    assert {leaf.dtype for leaf in jax.tree.leaves(report.state.params)} == {
        jnp.dtype(jnp.float32)
    }


def test_evaluation_in_batches_meets_every_example(few_images, monkeypatch):
    config = quick(model="cnn", optimizer="sgd")
    program = make_program(config, few_images)
    state = program.init(0, 0.1)
    whole = program.evaluate(state, few_images.test)
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH_SIZE", 24)
    np.testing.assert_allclose(
        program.evaluate(state, few_images.test), whole, rtol=1e-5
    )


def test_steps_one_by_one_are_those_of_a_loop(few_digits):
    config = quick(
        optimizer_options={"rule": "fr"}, learning_rate=0.1, batch_size=24, epochs=3
    )
    _, (loop,) = train(config, few_digits)
    _, (single,) = train(dataclasses.replace(config, steps_per_call=1), few_digits)
    np.testing.assert_allclose(loop.metrics["loss"], single.metrics["loss"], rtol=1e-4)
    with pytest.raises(ValueError, match="steps_per_call=3 must divide the 8 steps"):
        make_program(dataclasses.replace(config, steps_per_call=3), few_digits)


def test_smoothed_labels_are_a_mixture_of_the_label_and_all_classes():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 7)), rng.integers(7, size=5)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = 0.9 * np.eye(7)[labels] + 0.1 / 7
    # Float32 of numbers of about 3, summed over seven classes.
    np.testing.assert_allclose(
        cross_entropies(jnp.asarray(logits), jnp.asarray(labels), 0.1),
        -(targets * log_p).sum(1),
        rtol=1e-5,
    )


def test_labels_are_smoothed_in_training_alone(few_digits):
    config = quick(optimizer="sgd", batch_size=None, epochs=1, label_smoothing=0.2)
    program, (report,) = train(config, few_digits)
    state = program.init(0, config.learning_rate)
    model = models.build("mlp", 10)
    logits = model.apply({"params": state.params}, few_digits.train.images, train=False)
    of_label = cross_entropies(logits, few_digits.train.labels)
    of_all = -np.mean(jax.nn.log_softmax(logits), axis=1)
    np.testing.assert_allclose(
        report.metrics["loss"][0], np.mean(0.8 * of_label + 0.2 * of_all), rtol=1e-5
    )
    np.testing.assert_allclose(
        report.metrics["label_loss"][0], np.mean(of_label), rtol=1e-5
    )
    evaluated = program.evaluate(state, few_digits.train).loss
    np.testing.assert_allclose(evaluated, np.mean(of_label), rtol=1e-5)


@pytest.mark.parametrize(
    "partitioning", ["jit", pytest.param("shard_map", marks=pytest.mark.slow)]
)
def test_every_extra_argument_is_the_same_loss(partitioning, few_digits, monkeypatch):
    config = quick(model="cnn", batch_size=None, epochs=1, l2=0.1, label_smoothing=0.1)
    config = dataclasses.replace(
        config, optimizer="probe", micro_batches=2, partitioning=partitioning
    )
    names = ("value", "grad", "value_fn", "outputs_fn", "output_loss_fn")

    def update(
        updates, state, params, *, value, grad, value_fn, outputs_fn, output_loss_fn
    ):
        composed = lambda params: output_loss_fn(outputs_fn(params))
        zero = jax.tree.map(jnp.zeros_like, params)
        return zero, {
            "losses": jnp.stack([value, value_fn(params), composed(params)]),
            "grads": [grad, jax.grad(value_fn)(params), jax.grad(composed)(params)],
        }

    def init(params):
        return {"losses": jnp.zeros(3), "grads": [params] * 3}

    probe = optax.GradientTransformationExtraArgs(init, update)
    monkeypatch.setattr(registration, "OPTIMIZERS", {})
    optimizers.register(
        "probe",
        lambda learning_rate: probe,
        label="probe",
        color="black",
        space=optimizers.space_around(0.1),
        extras=names,
    )
    # Two devices: with more, independent sums over devices can block each other in
    # XLA's threads on a busy host.
    program = make_program(config, few_digits, jax.devices()[:2])
    state, metrics = jax.jit(program.train)(program.init(0, 0.1), few_digits.train)
    found = state.opt_state
    np.testing.assert_allclose(found["losses"], metrics["loss"][0], rtol=1e-5)
    for other in found["grads"][1:]:
        difference = optax.tree.norm(optax.tree.sub(other, found["grads"][0]))
        assert difference < 1e-5 * optax.tree.norm(found["grads"][0])


def test_a_run_stops_at_the_call_after_one_whose_loss_is_not_finite(few_digits):
    config = quick(optimizer="sgd", learning_rate=1e30, steps_per_call=1, epochs=20)
    _, reports = train(config, few_digits)
    assert len(reports) == 1
    losses = reports[0].metrics["loss"]
    bad = int(np.argmin(np.isfinite(losses)))
    assert 1 <= bad <= 3
    assert len(losses) == bad + 2
    with pytest.raises(DivergedError, match=f"at step {bad} with"):
        check_finite(reports[0], config)
