"""Speech Commands as TensorFlow Datasets stores it, with speakers: ArrayRecord files.

Version, splits and labels are those of the stock builder. Two things differ: audio is
a plain tensor, since the stock feature cannot even be constructed without TensorFlow;
and every clip has its speaker and its file name, without which clips cannot be split by
speaker.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.clip_parts import PARTS, read_parts
from experiments.data.clips import LABELS, SPEECH_SETS, AudioError, Clip, ClipStream
from experiments.data.downloads import download, prepare_anew
from experiments.data.shards import Shard, shards
from experiments.data.speech_archives import ALL_CLIPS, TEST_CLIPS, URL, read_archives

Example = dict[str, Any]

VERSION = "0.0.3"
ARCHIVES = {
    "speech_commands": (ALL_CLIPS, TEST_CLIPS),
    "speech_commands_test": (TEST_CLIPS,),
}
SHARD = 2048  # clips per file


class SpeechBuilder(  # type: ignore[call-arg]  # its base is seen as Any
    tfds.core.ShardBasedBuilder, skip_registration=True
):
    """Prepares Speech Commands v0.02.

    Args:
      name: a name in `SPEECH_SETS`.
      data_dir: folder of all prepared data sets.
      source: directory of files; None to download the official archives.
    """

    def __init__(self, name: str, data_dir: Path, source: Path | None):
        self.source = source
        self.name = name
        self.VERSION = tfds.core.Version(VERSION)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Speech Commands v0.02, prepared without TensorFlow.",
            features=tfds.features.FeaturesDict(
                {
                    "audio": tfds.features.Tensor(
                        shape=(None,), dtype=np.int16, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=LABELS),
                    "speaker": tfds.features.Text(),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("audio", "label"),
            homepage="https://arxiv.org/abs/1804.03209",
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Shard]]:
        streams = self._read(dl_manager)
        found: dict[str, list[Shard]] = {}
        for split in SPEECH_SETS[self.name]:
            total, clips = streams[split]
            if not total:
                raise AudioError(f"the files hold no clip of the split {split!r}")
            examples = enumerate(map(_example, clips))
            found[split] = shards(examples, total, SHARD)
        return found

    def _read(self, dl_manager: tfds.download.DownloadManager) -> dict[str, ClipStream]:
        names = ARCHIVES[self.name]
        if self.source is None:
            data_dir = Path(self._data_dir_root)
            return read_archives(download(dl_manager, data_dir, URL, names))
        paths = {name: self.source / name for name in names}
        if all(path.exists() for path in paths.values()):
            return read_archives(paths)
        parts_allowed = SPEECH_SETS[self.name] == ("test",)  # parts are of one split
        if parts_allowed and any(self.source.glob(PARTS)):
            return {"test": read_parts(self.source)}
        raise FileNotFoundError(
            f"source={str(self.source)!r} must be a directory that holds the official "
            f"{list(names)}" + (" or npz parts" if parts_allowed else "")
        )


def _example(clip: Clip) -> Example:
    if clip.label not in LABELS:
        raise AudioError(
            f"{clip.file_name} has label={clip.label!r}; allowed are {list(LABELS)}"
        )
    return {
        "audio": clip.samples,
        "label": clip.label,
        "speaker": clip.speaker,
        "file_name": clip.file_name,
    }


def prepare(name: str, data_dir: Path, source: Path | None) -> dict[str, int]:
    """Prepares a set of clips anew; a failed attempt leaves no data set behind.

    Args:
      name: a name in `SPEECH_SETS`.
      data_dir: folder of all prepared data sets.
      source: directory of the official archives, or for ``speech_commands_test`` of
        npz parts; None to download the archives.

    Returns:
      The number of clips per split.

    Raises:
      AudioError: if a file is corrupt, a clip cannot be used, or the stock builder's
        data set is in the way.
      FileNotFoundError: if files are missing in ``source``.
      UserError: if an archive cannot be downloaded.
    """
    _check_not_stock(data_dir / name / VERSION)
    builder = SpeechBuilder(name, data_dir, source)
    prepare_anew(builder)
    return {
        split: builder.info.splits[split].num_examples for split in SPEECH_SETS[name]
    }


def _check_not_stock(folder: Path) -> None:
    features = folder / "features.json"
    if features.exists() and '"speaker"' not in features.read_text(encoding="utf-8"):
        raise AudioError(
            f"{folder} was prepared by TensorFlow Datasets' own builder, which stores "
            "no speakers; prepare the data set in another folder, with --data-dir"
        )


def read(name: str, data_dir: Path, splits: Sequence[str]) -> Iterator[Clip]:
    """The clips of some splits of a prepared data set, in the order of their source.

    Raises:
      AudioError: if the stock builder made it.
      Exception: of whatever type the storage raises, if it is missing or corrupt.
    """
    folder = data_dir / name / VERSION
    _check_not_stock(folder)
    builder = tfds.builder_from_directory(folder)
    labels = builder.info.features["label"].names
    for split in splits:
        source = builder.as_data_source(split)
        for row in range(len(source)):
            example = source[row]
            yield Clip(
                example["audio"],
                labels[example["label"]],
                example["speaker"].decode(),
                example["file_name"].decode(),
            )
