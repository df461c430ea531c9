import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.config import RunConfig
from experiments.models.resnet50 import Bottleneck, ResNet50
from experiments.scaling.compiled_step import Problem, lower_step
from experiments.training import meshes


def sizes(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def resnet50():
    """Shapes of logits and variables, and of the images within."""
    model = models.build("resnet50", 1000, "bfloat16")
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    return jax.eval_shape(
        functools.partial(
            model.init_with_output,
            train=False,
            capture_intermediates=True,
            mutable=True,
        ),
        jax.random.key(0),
        images,
    )


def test_leaves_and_parameters_are_those_of_resnet50(resnet50):
    logits, variables = resnet50
    assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)
    assert sizes(variables["params"]) == 25_557_032
    # 53 convolutions, scale and bias of as many normalizations, and the dense layer.
    assert len(jax.tree.leaves(variables["params"])) == 3 * 53 + 2
    assert sizes(variables["batch_stats"]) == 2 * 26_560
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables["params"])}
    assert dtypes == {jnp.dtype("float32")}


def test_strides_stand_in_the_middle_convolution(resnet50):
    within = resnet50[1]["intermediates"]
    assert within["Conv_0"]["__call__"][0].shape == (2, 112, 112, 64)
    sides = []
    for block in range(16):
        own = within[f"Bottleneck_{block}"]
        first, middle = (own[f"Conv_{i}"]["__call__"][0].shape for i in (0, 1))
        out = own["__call__"][0]
        assert out.dtype == jnp.bfloat16
        sides.append((first[1], middle[1], out.shape[1], out.shape[3]))
    expected = (
        [(56, 56, 56, 256)] * 3
        + [(56, 28, 28, 512)]
        + [(28, 28, 28, 512)] * 3
        + [(28, 14, 14, 1024)]
        + [(14, 14, 14, 1024)] * 5
        + [(14, 7, 7, 2048)]
        + [(7, 7, 7, 2048)] * 2
    )
    assert sides == expected


def plain_bottleneck(params, x, stride):
    """The block by hand, on the statistics of the batch."""

    def conv(x, layer, stride=1):
        kernel = layer["kernel"]
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride,) * 2,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def normalize(x, scale):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale["scale"] + scale["bias"]

    out = jnp.maximum(normalize(conv(x, params["Conv_0"]), params["BatchNorm_0"]), 0)
    out = conv(out, params["Conv_1"], stride)
    out = jnp.maximum(normalize(out, params["BatchNorm_1"]), 0)
    out = normalize(conv(out, params["Conv_2"]), params["BatchNorm_2"])
    shortcut = normalize(
        conv(x, params["projection"], stride), params["projection_norm"]
    )
    return jnp.maximum(out + shortcut, 0)


def test_a_bottleneck_is_what_a_plain_one_computes():
    block = Bottleneck(filters=4, strides=2)
    x = jax.random.normal(jax.random.key(0), [3, 6, 6, 5])

    @jax.jit
    def compute(x):
        variables = block.init(jax.random.key(1), x, train=True)
        scale = variables["params"]["BatchNorm_2"]["scale"]
        rng = np.random.default_rng(0)
        moved = jax.tree.map(
            lambda leaf: leaf + rng.uniform(0, 0.2, leaf.shape).astype(np.float32),
            variables,
        )
        out, _ = block.apply(moved, x, train=True, mutable=["batch_stats"])
        return scale, out, plain_bottleneck(moved["params"], x, 2)

    scale, out, expected = compute(x)
    np.testing.assert_array_equal(scale, jnp.zeros(16))
    assert out.shape == (3, 3, 3, 16)
    # The variance is taken as E[x²] - E[x]² in one and about the mean in the other.
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_initialisation_of_a_small_resnet():
    model = ResNet50(num_classes=7, width=0.5, stage_blocks=(1,))
    images = jnp.ones([1, 32, 32, 3])
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), images
    )
    # 9 x 32 x 32 draws: the deviation is known to 0.74 per cent.
    kernel = variables["params"]["Bottleneck_0"]["Conv_1"]["kernel"]
    assert kernel.shape == (3, 3, 32, 32)
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 32)) ** 0.5, rtol=0.03)
    dense = variables["params"]["Dense_0"]["kernel"]
    assert dense.shape == (128, 7)  # 896 draws: to 2.4 per cent
    np.testing.assert_allclose(dense.std(), 0.01, rtol=0.1)


@pytest.mark.slow
def test_a_training_step_keeps_the_types_of_the_state():
    config = RunConfig(
        dataset="imagenet2012",
        model="resnet50",
        optimizer="large_batch_nlcg",
        learning_rate=0.02,
        batch_size=16,
        compute_dtype="bfloat16",
        standardization="imagenet",
    )
    step = lower_step(config, Problem(32, 1000), meshes.make_mesh())
    (before, _), _ = step.args_info
    after, metrics = step.out_info
    assert sizes(after) > 2 * 25_557_032  # with the memory of the direction
    given, returned = (
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
        for tree in (before, after)
    )
    assert returned == given
    assert metrics["loss"].shape == ()
