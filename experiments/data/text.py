"""The user's own text as a data set: the task is to predict the next character."""

import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Dataset, Split
from experiments.data.options import DataOptions
from experiments.data.prepared import NotPreparedError

FOLDER = "text"
LENGTH = 128  # characters per example
HELD_OUT = 0.05  # share of the text for validation, and again for the test


def load_text(options: DataOptions) -> Dataset:
    """Reads all ``*.txt`` files (UTF-8) in the folder ``text`` of the data folder.

    The files are concatenated in the order of their names. The last twentieth of the
    text is the test split and the twentieth before it the validation split. Each split
    is cut into examples of `LENGTH` characters, each to be predicted from those before
    it. A character's code is its rank among the characters of the text. Of the
    training split the first ``options.train_examples`` are used, if that is given.

    Raises:
      NotPreparedError: if there is no such file, or not enough text.
      ValueError: if the training split has fewer examples than are asked for.
    """
    folder = options.data_dir / FOLDER
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise NotPreparedError(
            f"there is no *.txt file in {str(folder)!r}: put text into a folder named "
            f"{FOLDER!r} and name the folder that holds it with --data-dir"
        )
    try:
        text = "".join(path.read_text(encoding="utf-8") for path in paths)
    except UnicodeDecodeError as error:
        raise NotPreparedError(
            f"a file in {str(folder)!r} is not UTF-8: {error}"
        ) from error
    codes, tokens = np.unique(
        np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True
    )
    held_out = int(HELD_OUT * len(tokens))
    if held_out <= LENGTH:
        raise NotPreparedError(
            f"the text in {str(folder)!r} has {len(tokens)} characters; more than "
            f"{round((LENGTH + 1) / HELD_OUT)} are needed"
        )
    train, validation, test = np.split(tokens, [-2 * held_out, -held_out])
    return Dataset(
        num_classes=len(codes),
        train=_first(options.train_examples, _examples(train)),
        validation=_examples(validation),
        test=_examples(test),
    )


def _first(count: int | None, split: Split) -> Split:
    there = split.labels.shape[0]
    if count is not None and count > there:
        raise ValueError(
            f"train_examples={count!r} must be at most the {there} of the text"
        )
    return Split(*(x[:count] for x in split))


def _examples(tokens: np.ndarray) -> Split:
    count = (len(tokens) - 1) // LENGTH
    inputs = tokens[: count * LENGTH].reshape(count, LENGTH)
    targets = tokens[1 : count * LENGTH + 1].reshape(count, LENGTH)
    return Split(jnp.asarray(inputs, jnp.int32), jnp.asarray(targets, jnp.int32))
