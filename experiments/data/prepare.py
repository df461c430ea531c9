"""``python -m experiments.data.prepare NAME``: prepares a data set for training.

``python -m experiments.data.prepare cifar100`` downloads CIFAR-100 and writes it as
TensorFlow Datasets would, without needing TensorFlow. ``--source DIRECTORY`` reads
local files instead: the official archives, or npz parts as described in
`experiments.data.npz_parts`. Speech Commands is downloaded as a whole
(``speech_commands``, 2.5 GB) or as its test split alone (``speech_commands_test``,
113 MB), which can also be made from npz parts as described in
`experiments.data.clip_parts`. ImageNet (``imagenet2012``) is made from its official
archives, which only registered users can download. ``--form arrays`` writes one file of
NumPy arrays, for machines without tensorflow-datasets.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.data import DATA_DIR, arrays_file
from experiments.data.clips import SPEECH_SETS
from experiments.data.files_at_hand import read_files
from experiments.data.image_sets import IMAGE_SETS, ImageSet, LabeledImages
from experiments.data.imagenet import NAME as IMAGENET
from experiments.data.prepared import read_prepared, read_tfds
from experiments.errors import ending_with_a_message, needing
from experiments.registry import look_up

MODULE = "experiments.data.prepare"


@dataclasses.dataclass(frozen=True)
class PrepareArguments:
    """Prepares a data set.

    Attributes:
      dataset: cifar10, cifar100, mnist, fashion_mnist, imagenet2012, speech_commands
        or speech_commands_test.
      source: directory of the official archives or of npz parts; by default the
        archives are downloaded.
      data_dir: folder of all prepared data sets.
      form: ``tfds`` for ArrayRecord files as TensorFlow Datasets writes them,
        ``arrays`` for one file of NumPy arrays, made from ``source``, or by default
        from the ArrayRecord files, which are prepared first if there are none.
    """

    dataset: Annotated[str, tyro.conf.Positional]
    source: Path | None = None
    data_dir: Path = DATA_DIR
    form: Literal["tfds", "arrays"] = "tfds"


def prepare(arguments: PrepareArguments) -> dict[str, int]:
    """Prepares the data set and returns the number of examples per split."""
    name, data_dir, source = arguments.dataset, arguments.data_dir, arguments.source
    if name in (IMAGENET, *SPEECH_SETS) and arguments.form != "tfds":
        raise ValueError(f"form={arguments.form!r} must be 'tfds' for {name}")
    look_up("dataset", name, dict.fromkeys([*IMAGE_SETS, IMAGENET, *SPEECH_SETS]))
    counts: dict[str, int]
    if name == IMAGENET:
        with needing("experiments"):
            store = importlib.import_module("experiments.data.imagenet_store")
        counts = store.prepare(data_dir, source)
        return counts
    if name in SPEECH_SETS:
        with needing("experiments"):
            store = importlib.import_module("experiments.data.speech_store")
        counts = store.prepare(name, data_dir, source)
        return counts
    return {name: len(s.labels) for name, s in _prepare_small(arguments).items()}


def _prepare_small(arguments: PrepareArguments) -> dict[str, LabeledImages]:
    image_set = IMAGE_SETS[arguments.dataset]
    if arguments.form == "arrays":
        splits = _read_source(image_set, arguments)
        arrays_file.write(image_set, arguments.data_dir, splits)
    else:
        with needing("experiments", ", or give --form arrays"):
            store = importlib.import_module("experiments.data.tfds_store")
        store.prepare(image_set, arguments.data_dir, arguments.source)
    return read_prepared(image_set, arguments.data_dir)


def _read_source(
    image_set: ImageSet, arguments: PrepareArguments
) -> dict[str, LabeledImages]:
    if arguments.source is not None:
        return read_files(image_set, arguments.source)
    if not (arguments.data_dir / image_set.name / image_set.version).exists():
        # Without tensorflow-datasets, reading raises the error that says what to do.
        with contextlib.suppress(ImportError):
            store = importlib.import_module("experiments.data.tfds_store")
            store.prepare(image_set, arguments.data_dir, None)
    return read_tfds(image_set, arguments.data_dir)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(PrepareArguments, prog=f"python -m {MODULE}", args=arguments)
    with ending_with_a_message(MODULE, arguments, again="start again with"):
        counts = prepare(given)
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        kind = "clips" if given.dataset in SPEECH_SETS else "images"
        print(f"{given.dataset} is prepared in {given.data_dir}: {shown} {kind}")


if __name__ == "__main__":
    main()
