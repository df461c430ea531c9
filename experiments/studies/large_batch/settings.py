"""The settings of a study that was run before, from the CSV files of its final runs.

With them the final runs are repeated without the search, which takes most of the time.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.records.files import RunRecord
from experiments.report.runs_csv import read_runs
from experiments.studies.large_batch.methods import Candidate
from experiments.studies.large_batch.tasks import Place
from experiments.tuning.samplers import Point


def csv_path(folder: Path, place: Place) -> Path:
    """The file of the final runs at a place."""
    return folder / f"{place.name.replace('/', '_')}.csv"


def tuned_setting(folder: Path, place: Place, candidate: Candidate) -> Point | None:
    """What was found for a method at a place; None if it was not run there.

    Raises:
      OSError: if the file of the place cannot be read.
      ValueError: if it is not such a file.
    """
    # The groups are in this order: tuned, then with one setting everywhere.
    found = _settings(csv_path(folder, place), candidate)
    return dict(found[0]) if found else None


def common_setting(
    folder: Path, places: Sequence[Place], candidate: Candidate
) -> Point | None:
    """The one setting of a method that was run everywhere; None if there is none.

    Raises:
      OSError: if the file of a place cannot be read.
      ValueError: if one is not such a file.
    """
    last = {
        found[-1]
        for place in places
        if (found := _settings(csv_path(folder, place), candidate))
    }
    return dict(last.pop()) if len(last) == 1 else None


def _settings(path: Path, candidate: Candidate) -> list[tuple[tuple[str, Any], ...]]:
    """The settings of a method, each once, in the order of the file."""
    drawn = (candidate.momentum, "ramp") if candidate.momentum else ()
    found = []
    for record in _runs(path):
        options = dict(record.config.optimizer_options)
        point: dict[str, Any] = {
            name: options.pop(name) for name in drawn if name in options
        }
        # What is left must be the options that are fixed.
        if (record.config.optimizer, options) == (
            candidate.optimizer,
            dict(candidate.options),
        ):
            point["learning_rate"] = record.config.learning_rate
            found.append(tuple(point.items()))
    return list(dict.fromkeys(found))


@functools.cache
def _runs(path: Path) -> list[RunRecord]:
    return read_runs(path)
