import pytest
import tyro

from experiments import data, models, optimizers, schedules
from experiments.config import RunConfig
from experiments.training import make_program


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 must be finite and greater"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan must be finite"),
        ({"l2": -1.0}, r"l2=-1\.0 must be finite and not below 0"),
        ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
        ({"epochs": 0}, "epochs=0 must be an integer of at least 1"),
        ({"epochs": True}, "epochs=True must be an integer of at least 1"),
        ({"epochs": 5, "epochs_per_report": 2}, "epochs_per_report=2 must divide"),
        ({"micro_batches": 0}, "micro_batches=0 must be an integer of at least 1"),
        ({"train_examples": 0}, "train_examples=0 must be an integer of at least 1"),
        ({"decode_workers": -1}, "decode_workers=-1 must be an integer of at least 0"),
        ({"image_size": 0}, "image_size=0 must be an integer of at least 1"),
        ({"validation_examples": -1}, "validation_examples=-1 must be an integer"),
        ({"ema_decay": 1.0}, r"ema_decay=1\.0 must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0\.1 must be at least 0"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs=5 .* below epochs=5"),
        ({"split_seed": -1}, "split_seed=-1 must be an integer from 0"),
        ({"seed": -1}, "seed=-1 must be an integer from 0 to 2147483647"),
        ({"shard_devices": 0}, "shard_devices=0 must be an integer of at least 1"),
        ({"axis_types": "manual"}, r"axis_types='manual' must be one of \('auto'"),
        ({"partitioning": "pmap"}, r"partitioning='pmap' must be one of \('jit'"),
        ({"gradient_dtype": "bfloat16"}, "gradient_dtype='bfloat16' needs partition"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: data.load("mnits"),
            r"dataset='mnits' is unknown; .*\['cifar10', 'cifar100', .*\]",
        ),
        (
            lambda: models.build("resnet", 10),
            r"model='resnet' .*\['autoencoder', .*'mlp', .*'resnet",
        ),
        (
            lambda: models.build("mlp", 10, "int8"),
            r"compute_dtype='int8' .*\['bfloat16', 'float32'\]",
        ),
        (lambda: optimizers.build("lion", 0.1), "optimizer='lion' is unknown; allowed"),
        (lambda: schedules.build("step", 0.1, 9), "schedule='step' is unknown"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_options_of_another_optimizer_are_refused():
    with pytest.raises(ValueError, match=r"momentum=0\.9, which 'adam' does not take"):
        optimizers.build("adam", 0.1, {"momentum": 0.9})


def test_an_option_of_the_command_line_can_be_none():
    given = ["--optimizer-options", "beta_max", "None", "rule", "fr"]
    config = tyro.cli(RunConfig, args=given)
    assert config.optimizer_options == {"beta_max": None, "rule": "fr"}


def test_an_option_that_is_no_number_is_refused():
    with pytest.raises(
        ValueError,
        match=r"optimizer_options has momentum='abc', .* number, .*'heavy_ball', 0\.9",
    ):
        optimizers.build("heavy_ball", 0.1, {"momentum": "abc"})
    with pytest.raises(ValueError, match=r"refresh_period='often', .* number"):
        optimizers.build(
            "nlcg", 0.1, {"preconditioner": "kronecker", "refresh_period": "often"}
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1025}, "batch_size=1025 exceeds .* allowed are 1 to 1024"),
        ({"micro_batches": 3}, "batch_size=256 .* micro_batches=3; .* multiples of"),
        ({"data_devices": 3}, "data_devices=3 and shard_devices=1 do not multiply"),
        ({"ghost_batch_size": 8}, "ghost_batch_size=8 must be None with model='mlp'"),
        (
            {"ghost_batch_size": 24, "model": "cnn"},
            "ghost_batch_size=24 must divide the 256 examples of a micro-batch",
        ),
        ({"augmentation": "mixup"}, "augmentation='mixup' is unknown"),
        ({"compute_dtype": "int8"}, "compute_dtype='int8' is unknown"),
        ({"model": "resnet"}, "model='resnet' is unknown"),
        (
            {"model": "transformer"},
            "model='transformer' takes text, but .* holds images",
        ),
        ({"standardization": "pixel"}, "standardization='pixel' is unknown; allowed"),
        ({"optimizer": "lion"}, "optimizer='lion' is unknown"),
        ({"schedule": "step"}, "schedule='step' is unknown"),
        (
            {
                "optimizer": "nlcg",
                "optimizer_options": {"preconditioner": "secant", "refresh_period": 0},
            },
            "refresh_period=0 must be an integer of at least 1",
        ),
    ],
)
def test_a_program_is_refused_before_any_work(settings, message, digits):
    with pytest.raises(ValueError, match=message):
        make_program(RunConfig(**settings), digits)
