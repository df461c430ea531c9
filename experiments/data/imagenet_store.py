"""ImageNet as TensorFlow Datasets stores it: ArrayRecord files of the original JPEGs.

The stock generator needs TensorFlow; this builder does not, and its files are read in
the same way. Name, version and features are the stock ones, so that a data set prepared
elsewhere (with ``file_format=array_record``) can be read, too.
"""

import io
import itertools
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from experiments.data.downloads import prepare_anew
from experiments.data.shards import Shard, shards

Example = dict[str, Any]

NAME, VERSION = "imagenet2012", "5.1.0"
TRAINING_ARCHIVE = "ILSVRC2012_img_train.tar"  # one tar file per class
VALIDATION_ARCHIVE = "ILSVRC2012_img_val.tar"
SHARD = 1000  # validation images per file


class ImageNetBuilder(  # type: ignore[call-arg]  # its base is seen as Any
    tfds.core.ShardBasedBuilder, skip_registration=True
):
    """Prepares ImageNet (ILSVRC 2012) from the official archives.

    Args:
      data_dir: folder of all prepared data sets.
      source: directory of the archives.
    """

    def __init__(self, data_dir: Path, source: Path):
        self.source = source
        self.name = NAME
        self.VERSION = tfds.core.Version(VERSION)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="ImageNet (ILSVRC 2012), prepared without TensorFlow.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=class_names()),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Shard]]:
        del dl_manager  # only registered users can download the archives
        training, validation = (
            len(_names(self.source / name))
            for name in (TRAINING_ARCHIVE, VALIDATION_ARCHIVE)
        )
        classes = training_classes(self.source)
        images = map(_example, validation_images(self.source))
        return {
            # A file per class, each of the class that comes next.
            "train": [lambda: map(_example, next(classes))] * training,
            "validation": shards(images, validation, SHARD),
        }


def _example(image: tuple[str, str, bytes]) -> tuple[str, Example]:
    name, label, encoded = image
    return name, {"image": io.BytesIO(encoded), "label": label, "file_name": name}


def class_names() -> list[str]:
    """The 1000 synsets, such as ``n01440764``, in the order of their labels."""
    return _stock_lines("labels.txt")


def validation_class_names() -> list[str]:
    """The synset of each validation image, in the order of the file names."""
    return _stock_lines("validation_labels.txt")


def training_classes(source: Path) -> Iterator[Iterator[tuple[str, str, bytes]]]:
    """Name, synset and content of every training image, class by class.

    Raises:
      ValueError: if the archive is corrupt or holds something else.
    """
    known = set(class_names())
    for archive_name, archive in _members(source / TRAINING_ARCHIVE):
        synset = archive_name.removesuffix(".tar")
        if synset not in known:
            raise ValueError(
                f"{source / TRAINING_ARCHIVE} holds {archive_name!r}; allowed are tar "
                "files named after the 1000 synsets of ILSVRC 2012"
            )
        yield _labeled(synset, _members(source / TRAINING_ARCHIVE, io.BytesIO(archive)))


def _labeled(
    synset: str, images: Iterator[tuple[str, bytes]]
) -> Iterator[tuple[str, str, bytes]]:
    return ((name, synset, encoded) for name, encoded in images)


def validation_images(source: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, synset and content of every validation image."""
    path = source / VALIDATION_ARCHIVE
    synsets = dict(zip(sorted(_names(path)), validation_class_names(), strict=False))
    for name, encoded in _members(path):
        yield name, synsets[name], encoded


def prepare(data_dir: Path, source: Path | None) -> dict[str, int]:
    """Prepares ImageNet from scratch; a failed attempt leaves no data set behind.

    Returns:
      The number of images per split.

    Raises:
      FileNotFoundError: if an archive is missing.
      ValueError: if one is corrupt.
    """
    archives = (TRAINING_ARCHIVE, VALIDATION_ARCHIVE)
    if source is None or not all((source / name).exists() for name in archives):
        raise FileNotFoundError(
            f"source={None if source is None else str(source)!r} must be a directory "
            f"that holds {list(archives)}, from https://image-net.org/download-images"
        )
    try:
        builder = ImageNetBuilder(data_dir, source)
        prepare_anew(builder)
    except (EOFError, tarfile.TarError) as error:
        raise ValueError(
            f"an archive in {str(source)!r} is corrupt: {error}"
        ) from error
    return {name: split.num_examples for name, split in builder.info.splits.items()}


def open_split(data_dir: Path, split: str) -> Sequence[Example]:
    """The examples of a split, with encoded images.

    The last example of each shard is read as a check: in a truncated shard it is
    unreadable or empty.

    Raises:
      Exception: of whatever type the storage raises, if it is missing or corrupt.
    """
    builder = tfds.builder_from_directory(data_dir / NAME / VERSION)
    source = builder.as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    lengths = builder.info.splits[split].shard_lengths
    # In one call: there are a thousand, and storage may be remote.
    ends = source.__getitems__([end - 1 for end in itertools.accumulate(lengths)])
    for shard, example in enumerate(ends):
        if example["image"] is None:
            raise ValueError(f"shard {shard} of split {split!r} is truncated")
    return source


def num_classes(data_dir: Path) -> int:
    """Number of classes of the prepared data set."""
    builder = tfds.builder_from_directory(data_dir / NAME / VERSION)
    return int(builder.info.features["label"].num_classes)


def _names(path: Path) -> list[str]:
    with tarfile.open(path, "r:") as archive:
        return [member.name for member in archive if member.isfile()]


def _members(path: Path, file: io.BytesIO | None = None) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:", fileobj=file) as archive:
        for member in archive:
            found = archive.extractfile(member)
            if found is not None:
                yield member.name, found.read()


def _stock_lines(name: str) -> list[str]:
    path = tfds.core.tfds_path(f"datasets/{NAME}/{name}")
    return path.read_text(encoding="utf-8").split()
