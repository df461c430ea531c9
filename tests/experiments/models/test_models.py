import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.models.resnet_cifar import ResNetCifar


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mlp", 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10),
        ("cnn", 9 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32 + 32 * 10 + 10),
    ],
)
def test_sizes_and_logits(name, parameters):
    model = models.build(name, 10)
    images = jnp.ones([3, 8, 8, 1])
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, train=False)
    )
    assert logits.shape == (3, 10)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == parameters
    assert ("batch_stats" in variables) == (name == "cnn")


def test_patches_are_those_of_the_image():
    # One channel and one hidden layer: patch (i, j) is the block of four by four.
    model = models.build("patches", 3).clone(depth=1, width=16)
    images = jnp.asarray(np.random.default_rng(0).normal(size=[2, 8, 12, 1]))
    variables = model.init(jax.random.key(0), images, train=False)
    params = variables["params"]
    blocks = [
        images[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 0].reshape(2, 16)
        for i in range(2)
        for j in range(3)
    ]
    # Statistics are zero and one at first.
    hidden = [
        np.maximum(b @ params["Dense_0"]["kernel"] / np.sqrt(1 + 1e-5), 0)
        for b in blocks
    ]
    output = params["Dense_1"]
    expected = np.mean(hidden, axis=0) @ output["kernel"] + output["bias"]
    logits = model.apply(variables, images, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_an_autoencoder_has_logits_for_each_pixel_and_a_narrow_linear_code():
    model = models.build("autoencoder", 2)
    images = jnp.ones([3, 8, 8, 1])
    logits, variables = model.init_with_output(jax.random.key(0), images, train=False)
    assert logits.shape == (3, 64, 2)
    widths = [leaf["kernel"].shape[1] for leaf in variables["params"].values()]
    assert widths == [128, 64, 12, 64, 128, 128]
    # Beyond one the code is not squashed.
    code = variables["params"]["Dense_2"]
    large = {
        "params": {
            **variables["params"],
            "Dense_2": {**code, "bias": 9 + 0 * code["bias"]},
        }
    }
    larger = {
        "params": {
            **variables["params"],
            "Dense_2": {**code, "bias": 99 + 0 * code["bias"]},
        }
    }
    before, after = (model.apply(v, images, train=False) for v in (large, larger))
    assert not np.allclose(before, after)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet8", 83_956),
        ("resnet20", 278_388),
        ("resnet32", 472_820),
        ("resnet56", 861_684),
    ],
)
def test_the_papers_residual_networks(name, parameters):
    variables = jax.eval_shape(
        lambda: models.build(name, 100).init(
            jax.random.key(0), jnp.ones([1, 32, 32, 3]), train=False
        )
    )
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == parameters


def plain_resnet(variables, images, blocks, strides):
    """Pre-activation blocks by hand, on the statistics that are kept."""
    params, stats = variables["params"], variables["batch_stats"]

    def conv(x, kernel, stride=1):
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride,) * 2,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def normalize(x, scale, seen):
        deviation = jnp.sqrt(seen["var"] + 1e-5)
        x = (x - seen["mean"]) / deviation * scale["scale"] + scale["bias"]
        return jnp.maximum(x, 0)

    x = conv(images, params["Conv_0"]["kernel"])
    for number in range(blocks):
        own = params[f"PreActivationBlock_{number}"]
        seen = stats[f"PreActivationBlock_{number}"]
        stride = strides.get(number, 1)
        shortcut, kernels = x, [own[f"Conv_{i}"]["kernel"] for i in range(len(own) - 2)]
        x = normalize(x, own["BatchNorm_0"], seen["BatchNorm_0"])
        if number in strides:
            shortcut = conv(x, kernels.pop(0), stride)
        x = conv(x, kernels.pop(0), stride)
        x = normalize(x, own["BatchNorm_1"], seen["BatchNorm_1"])
        x = shortcut + conv(x, kernels.pop(0))
    x = normalize(x, params["BatchNorm_0"], stats["BatchNorm_0"]).mean((1, 2))
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


@pytest.fixture(scope="module")
def small_resnet():
    """A network with everything off its initial value, and images for it."""
    model = models.build("resnet8_narrow", 5)
    images = 3 + jax.random.normal(jax.random.key(0), [2, 8, 8, 3])
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(1), images
    )
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda leaf: leaf + rng.uniform(0, 0.1, leaf.shape).astype(np.float32),
        variables,
    )
    return model, variables, moved, images


@pytest.mark.slow
def test_a_residual_network_is_what_a_plain_one_computes(small_resnet):
    model, _, variables, images = small_resnet
    rough = models.build("resnet8_narrow", 5, "bfloat16")

    @jax.jit
    def compute(variables, images):
        return (
            model.apply(variables, images, train=False),
            rough.apply(variables, images, train=False),
            plain_resnet(variables, images, 3, {0: 1, 1: 2, 2: 2}),
        )

    logits, rough_logits, expected = compute(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    assert rough_logits.dtype == jnp.float32
    # Eight bits of mantissa, through eight layers.
    np.testing.assert_allclose(rough_logits, expected, rtol=0.1, atol=0.1)
    assert not np.allclose(rough_logits, expected, rtol=1e-4, atol=1e-5)


def test_blocks_behind_the_first_of_a_stage_have_no_projection():
    model = ResNetCifar(5, depth=14, width=0.25)
    rng = np.random.default_rng(0)
    images = rng.normal(size=[2, 8, 8, 3]).astype(np.float32)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images
    )
    variables = {
        name: jax.tree.map(
            lambda leaf, bounds=bounds: rng.uniform(*bounds, leaf.shape).astype("f4"),
            shapes[name],
        )
        for name, bounds in (("params", (-0.5, 0.5)), ("batch_stats", (0.5, 1.5)))
    }
    blocks = [variables["params"][f"PreActivationBlock_{n}"] for n in range(6)]
    kernels = [sum(name.startswith("Conv") for name in block) for block in blocks]
    assert kernels == [3, 2] * 3

    @jax.jit
    def compute(variables, images):
        return (
            model.apply(variables, images, train=False),
            plain_resnet(variables, images, 6, {0: 1, 2: 2, 4: 2}),
        )

    logits, expected = compute(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_initialisation_and_statistics_of_the_residual_networks(small_resnet):
    model, variables, _, images = small_resnet
    kernel = variables["params"]["PreActivationBlock_2"]["Conv_2"]["kernel"]
    assert kernel.shape == (3, 3, 32, 32)
    # 9,216 draws: the deviation is known to one per cent or so; truncation at two
    # deviations of the underlying normal shows as a bound at 2 / .8796 of its own.
    deviation = (9 * 32) ** -0.5
    np.testing.assert_allclose(kernel.std(), deviation, rtol=0.04)
    assert jnp.abs(kernel).max() <= 2 / 0.87962566 * deviation * 1.001

    @jax.jit
    def statistics(variables, images):
        _, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        stem = jax.lax.conv_general_dilated(
            images,
            variables["params"]["Conv_0"]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return updated["batch_stats"]["PreActivationBlock_0"]["BatchNorm_0"], stem

    first, stem = statistics(variables, images)
    np.testing.assert_allclose(
        first["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-3, atol=1e-6
    )
    assert model.norm_momentum == 0.9
    assert models.build("resnet8", 100).norm_momentum == 0.99
