import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, models, run
from experiments.config import RunConfig
from experiments.data.text import LENGTH
from experiments.models.transformer import Transformer
from experiments.records.files import read_record
from experiments.training import make_program


@pytest.fixture
def folder(tmp_path):
    """Two files of one text in which every character tells the next."""
    alphabet = "abcdefgh µé\n"
    text = alphabet * 1000
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(text[:7001], encoding="utf-8")
    (tmp_path / "text" / "b.txt").write_text(text[7001:], encoding="utf-8")
    (tmp_path / "text" / "README.md").write_text("not this", encoding="utf-8")
    return tmp_path


def test_a_text_is_cut_into_examples_of_the_next_character(folder):
    dataset = data.load("text", data.DataOptions(folder))
    # The alphabet in the order of its code points: line feed, blank, a to h, µ, é.
    order = np.array([2, 3, 4, 5, 6, 7, 8, 9, 1, 10, 11, 0])
    assert dataset.num_classes == 12
    counts = [10_800, 600, 600]
    starts = [0, 10_800, 11_400]
    for split, count, start in zip(dataset[1:], counts, starts):
        assert split.images.shape == ((count - 1) // LENGTH, LENGTH)
        tokens = order[(start + np.arange(count)) % 12]
        used = split.images.size
        np.testing.assert_array_equal(split.images.reshape(-1), tokens[:used])
        np.testing.assert_array_equal(split.labels.reshape(-1), tokens[1 : used + 1])


def test_the_first_examples_of_the_training_split_can_be_all(folder):
    whole = data.load("text", data.DataOptions(folder))
    some = data.load("text", data.DataOptions(folder, train_examples=3))
    np.testing.assert_array_equal(some.train.images, whole.train.images[:3])
    np.testing.assert_array_equal(some.test.labels, whole.test.labels)
    with pytest.raises(ValueError, match="train_examples=99 must be at most the 84"):
        data.load("text", data.DataOptions(folder, train_examples=99))


def test_text_that_is_missing_or_wrong_is_told(folder, tmp_path):
    with pytest.raises(data.NotPreparedError, match=r"no \*\.txt file in .*elsewhere"):
        data.load("text", data.DataOptions(tmp_path / "elsewhere"))
    (folder / "text" / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(data.NotPreparedError, match="is not UTF-8"):
        data.load("text", data.DataOptions(folder))
    for name in "bc":
        (folder / "text" / f"{name}.txt").unlink()
    (folder / "text" / "a.txt").write_text("short", encoding="utf-8")
    with pytest.raises(data.NotPreparedError, match="has 5 characters; more than 2580"):
        data.load("text", data.DataOptions(folder))


def test_models_and_augmentation_of_images_are_refused(folder):
    dataset = data.load("text", data.DataOptions(folder))
    settings = {"dataset": "text", "batch_size": 8}
    with pytest.raises(ValueError, match="model='mlp' takes images, but .* holds text"):
        make_program(RunConfig(**settings), dataset)
    settings |= {"model": "transformer", "augmentation": "crop_flip"}
    with pytest.raises(ValueError, match="augmentation='crop_flip' must be 'none'"):
        make_program(RunConfig(**settings), dataset)


@pytest.mark.slow
def test_the_transformer_sees_no_character_that_is_to_come():
    model = Transformer(num_classes=7, width=16, depth=2, heads=2)
    tokens = jax.random.randint(jax.random.key(0), [3, 10], 0, 7)
    logits, variables = jax.jit(
        lambda key: model.init_with_output(key, tokens, train=True)
    )(jax.random.key(1))
    block = 4 * 16 * 16 + 4 * 16 + 2 * 4 * 16 * 16 + 5 * 16 + 2 * 2 * 16
    leaves = jax.tree.leaves(variables["params"])
    assert sum(x.size for x in leaves) == (7 + 10) * 16 + 2 * block + 2 * 16
    assert logits.shape == (3, 10, 7)
    apply = jax.jit(lambda tokens: model.apply(variables, tokens, train=False))
    logits = apply(tokens)
    for place in (4, 9):
        changed = apply(tokens.at[:, place].add(1) % 7)
        np.testing.assert_array_equal(changed[:, :place], logits[:, :place])
        assert jnp.all(jnp.any(changed[:, place:] != logits[:, place:], axis=-1))


def test_bfloat16_stays_within_the_blocks():
    model = models.build("transformer", 7, "bfloat16")
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), jnp.zeros([1, 8], jnp.int32), train=False
        )
    )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((logits, variables))}
    assert dtypes == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
def test_a_text_is_learned(folder, tmp_path):
    record = tmp_path / "run.jsonl"
    run.main(
        [
            "--config.dataset=text",
            "--config.model=transformer_small",
            "--config.optimizer=adam",
            "--config.learning-rate=0.003",
            "--config.batch-size=16",
            "--config.epochs=10",
            f"--data-dir={folder}",
            f"--record={record}",
        ]
    )
    summary = read_record(record).summary
    assert summary["test_accuracy"] > 0.95
    assert summary["test_loss"] < 0.3
