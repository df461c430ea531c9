"""Image sets as TensorFlow Datasets stores them: ArrayRecord files of PNG images.

The stock generators of these sets need TensorFlow; this builder does not. Its files
are read by ``tfds.data_source`` like those of any prepared data set.
"""

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.data.archives import read_archives
from experiments.data.files_at_hand import SPLITS, read_files
from experiments.data.image_sets import ImageSet, LabeledImages
from experiments.errors import UserError

CONNECT_SECONDS = 5.0

Example = dict[str, Any]


class ImageSetBuilder(  # type: ignore[call-arg]  # its base is seen as Any
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Prepares an `ImageSet`.

    The checksums of the downloads are in ``checksums.tsv`` next to this file.

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
        urls = {name: self.image_set.url + name for name in self.image_set.archives}
        check_reachable(urls.values(), Path(self._data_dir_root) / "downloads")
        paths = {n: Path(path) for n, path in dl_manager.download(urls).items()}
        return read_archives(self.image_set, paths)

    def _generate_examples(self, split: LabeledImages) -> Iterator[tuple[int, Example]]:
        for row, (image, label) in enumerate(zip(*split, strict=True)):
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            yield row, {"image": Image.fromarray(pixels), "label": int(label)}


def check_reachable(urls: Iterable[str], downloads: Path) -> None:
    """Fails within seconds if an archive cannot be downloaded.

    TensorFlow Datasets itself would retry for minutes.

    Args:
      urls: addresses of the archives.
      downloads: folder of archives that were downloaded before.

    Raises:
      UserError: if the host of an archive that must be downloaded does not answer.
    """
    known = [path.read_text(encoding="utf-8") for path in downloads.rglob("*.INFO")]
    for url in urls:
        if any(url in text for text in known):
            continue
        try:
            urllib.request.urlopen(url, timeout=CONNECT_SECONDS).close()
        except urllib.error.HTTPError:
            continue  # the host answers; the download reports the rest
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"{url} cannot be reached ({getattr(error, 'reason', error)}); "
                "without a network, prepare the data set from files with "
                "--source DIRECTORY"
            ) from error


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
    ImageSetBuilder(image_set, data_dir, source).download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            # Keeps downloads, but not a prepared data set that is corrupt.
            download_mode=tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS,
            force_checksums_validation=True,
        )
    )


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
