import dataclasses

import pytest

from experiments.data import StreamedDataset
from experiments.data.photo_stream import PhotoStream
from experiments.scaling.compiled_step import Problem, cost_of, lower_step
from experiments.studies import imagenet_pod
from experiments.training import make_program, meshes


@pytest.mark.parametrize("name", imagenet_pod.CONFIGS)
def test_every_configuration_makes_the_program_that_is_described(name):
    config = imagenet_pod.CONFIGS[name][1]
    stream = PhotoStream(range(1_281_167), config.image_size)
    program = make_program(config, StreamedDataset(1000, stream, None, stream))
    assert program.batch_size == 65_536
    assert program.steps_per_call == 1
    assert program.calls_per_report * 45 == 1755
    shapes = program.feed(stream).shapes
    assert shapes.images.shape == (1, 2, 32_768, 224, 224, 3)
    assert shapes.labels.shape == (1, 2, 32_768)


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("name", imagenet_pod.CONFIGS)
def test_every_configuration_compiles_with_a_small_network(name):
    config = dataclasses.replace(
        imagenet_pod.CONFIGS[name][1],
        model="cnn",
        batch_size=64,
        ghost_batch_size=4,
        compute_dtype="float32",  # of which this CPU has every operation
    )
    mesh = meshes.make_mesh()
    cost = cost_of(lower_step(config, Problem(8, 10), mesh))
    parameters = 9 * 3 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32 + 32 * 10 + 10
    # Weights and their average are among the arguments; gradients of both
    # micro-batches are sent.
    assert cost.argument_bytes >= 2 * 4 * parameters
    assert cost.collective_bytes_by_dtype["f32"] >= 2 * 4 * parameters
    assert config.micro_batches == 2


def test_the_command_takes_a_name_and_says_what_to_prepare(tmp_path, capsys):
    record = f"--record={tmp_path / 'run.jsonl'}"
    arguments = ["lars", f"--data-dir={tmp_path}", record, "--config.epochs=6"]
    with pytest.raises(SystemExit, match="error: the data set 'imagenet2012' is miss"):
        imagenet_pod.main(arguments)
    with pytest.raises(SystemExit):
        imagenet_pod.main(["adagrad"])
    assert "paper-nlcg" in capsys.readouterr().err
