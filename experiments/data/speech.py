"""Speech Commands: the clips of a prepared data set."""

import importlib
from pathlib import Path

from experiments.data.clips import SPEECH_SETS, AudioError, Clips, stack
from experiments.data.prepared import not_prepared
from experiments.registry import look_up


def load_clips(name: str, data_dir: Path, length: int) -> Clips:
    """All clips of a prepared data set, split by split, in the order of their source.

    Args:
      name: a name in `SPEECH_SETS`.
      data_dir: folder of all prepared data sets.
      length: samples per clip; shorter ones are padded with zeros.

    Raises:
      AudioError: if a clip is longer, or the data set holds no speakers.
      NotPreparedError: if the data set is missing or corrupt; the message says how to
        prepare it.
      ValueError: if the name is unknown.
    """
    splits = look_up("dataset", name, SPEECH_SETS)
    try:
        # Imported here so that nothing else needs tensorflow-datasets.
        store = importlib.import_module("experiments.data.speech_store")
        return stack(store.read(name, data_dir, splits), length)
    except AudioError:
        raise
    # A corrupt store raises whatever its library does, even a bare RuntimeError.
    except Exception as error:
        raise not_prepared(name, data_dir, error) from error
