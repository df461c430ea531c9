"""Downloading archives through TensorFlow Datasets, which verifies their checksums.

The checksums are in ``checksums.tsv`` next to this file.
"""

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds

from experiments.errors import UserError

CONNECT_SECONDS = 5.0


def download(
    dl_manager: tfds.download.DownloadManager,
    data_dir: Path,
    url: str,
    names: Iterable[str],
) -> dict[str, Path]:
    """Paths of archives, downloaded if they have not been before.

    Args:
      dl_manager: that of a builder in this folder.
      data_dir: folder of all prepared data sets.
      url: folder of the archives.
      names: their file names.

    Raises:
      UserError: if an archive cannot be downloaded.
    """
    urls = {name: url + name for name in names}
    check_reachable(urls.values(), data_dir / "downloads")
    return {name: Path(path) for name, path in dl_manager.download(urls).items()}


def prepare_anew(builder: tfds.core.DatasetBuilder) -> None:
    """Prepares a data set from scratch; a failed attempt keeps only its downloads."""
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            # Keeps downloads, but not a prepared data set, which may be corrupt.
            download_mode=tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS,
            force_checksums_validation=True,
        )
    )


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
