import jax
import jax.numpy as jnp
import pytest

from experiments import models


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
