"""Image sets as TensorFlow Datasets stores them: ArrayRecord files of PNG images.

The stock generators of these sets need TensorFlow; this builder does not. Its files
are read by ``tfds.data_source`` like those of any prepared data set.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.data.archives import read_archives
from experiments.data.downloads import download, prepare_anew
from experiments.data.files_at_hand import SPLITS, read_files
from experiments.data.image_sets import ImageSet, LabeledImages

Example = dict[str, Any]


class ImageSetBuilder(  # type: ignore[call-arg]  # its base is seen as Any
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Prepares an `ImageSet`.

    Args:
      image_set: the set to prepare.
      data_dir: folder of all prepared data sets.
      source: directory of files; None to download the official archives.
    """

    def __init__(self, image_set: ImageSet, data_dir: Path, source: Path | None):
        self.image_set = image_set
        self.source = source
        self.name = image_set.name
        self.VERSION = tfds.core.Version(image_set.version)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}, prepared without TensorFlow.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=self.image_set.shape),
                    "label": tfds.features.ClassLabel(
                        num_classes=self.image_set.num_classes
                    ),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.image_set.url,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Example]]]:
        splits = self._read(dl_manager)
        return {name: self._generate_examples(splits[name]) for name in SPLITS}

    def _read(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, LabeledImages]:
        if self.source is not None:
            return read_files(self.image_set, self.source)
        url, names = self.image_set.url, self.image_set.archives
        paths = download(dl_manager, Path(self._data_dir_root), url, names)
        return read_archives(self.image_set, paths)

    def _generate_examples(self, split: LabeledImages) -> Iterator[tuple[int, Example]]:
        for row, (image, label) in enumerate(zip(*split, strict=True)):
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            yield row, {"image": Image.fromarray(pixels), "label": int(label)}


def prepare(image_set: ImageSet, data_dir: Path, source: Path | None) -> None:
    """Prepares an image set; a failed attempt leaves no data set behind.

    Args:
      image_set: the set to prepare.
      data_dir: folder of all prepared data sets.
      source: directory of files; None to download the official archives.

    Raises:
      FileNotFoundError: if files are missing in ``source``.
      UserError: if an archive cannot be downloaded.
      ValueError: if a file is corrupt.
    """
    prepare_anew(ImageSetBuilder(image_set, data_dir, source))


def read(image_set: ImageSet, data_dir: Path) -> dict[str, LabeledImages]:
    """Reads both splits of a prepared image set.

    Raises:
      Exception: of whatever type the storage raises, if it is missing or corrupt.
    """
    folder = data_dir / image_set.name / image_set.version
    builder = tfds.builder_from_directory(folder)
    return {name: _read_split(builder.as_data_source(name)) for name in SPLITS}


def _read_split(source: Sequence[Example]) -> LabeledImages:
    examples = [source[row] for row in range(len(source))]
    return LabeledImages(
        np.stack([example["image"] for example in examples]),
        np.array([example["label"] for example in examples], np.int32),
    )
