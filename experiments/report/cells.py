"""Records grouped into cells: runs that differ in nothing but the seed."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence

from experiments.config import RunConfig
from experiments.optimizers import label_of
from experiments.records.files import RunRecord


@dataclasses.dataclass(frozen=True)
class Cell:
    """The runs of one configuration.

    Attributes:
      records: that reached their end or were stopped, a seed each.
    """

    records: tuple[RunRecord, ...]

    @property
    def config(self) -> RunConfig:
        """The configuration of the first seed."""
        return self.records[0].config

    @property
    def label(self) -> str:
        """A readable name of the optimiser."""
        return optimizer_label(self.config)

    def values(self, name: str) -> list[float]:
        """A figure of the summary for every seed, NaN where a run has none."""
        found = [
            None if record.summary is None else record.summary[name]
            for record in self.records
        ]
        return [math.nan if value is None else float(value) for value in found]

    def median(self, name: str) -> float:
        """The median over seeds, which is infinite if half of them diverged."""
        finite = [v if math.isfinite(v) else math.inf for v in self.values(name)]
        return statistics.median(finite)


def group(records: Iterable[RunRecord]) -> list[Cell]:
    """Groups records into cells, in the order in which they come."""
    cells: dict[str, list[RunRecord]] = {}
    for record in records:
        settings = dataclasses.asdict(dataclasses.replace(record.config, seed=0))
        cells.setdefault(json.dumps(settings, sort_keys=True), []).append(record)
    return [Cell(tuple(found)) for found in cells.values()]


def by_batch_size(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Splits cells by batch size, the smallest first and the full batch last."""
    ordered = sorted(cells, key=lambda cell: cell.config.batch_size or math.inf)
    groups: dict[str, list[Cell]] = {}
    for cell in ordered:
        name = batch_size_name(cell.config.batch_size)
        groups.setdefault(name, []).append(cell)
    return groups


def short_labels(cells: Sequence[Cell]) -> list[str]:
    """A label for each cell: without options where its batch size allows."""
    bare = [
        label_of(
            cell.config.optimizer,
            {
                option: value
                for option, value in cell.config.optimizer_options.items()
                if isinstance(value, str)
            },
        )
        for cell in cells
    ]
    places = [
        (cell.config.batch_size, name) for cell, name in zip(cells, bare, strict=True)
    ]
    return [
        name if places.count(place) == 1 else cell.label
        for cell, name, place in zip(cells, bare, places, strict=True)
    ]


def batch_size_name(size: int | None) -> str:
    """Names a batch size in words."""
    return "full batch" if size is None else f"batch size {size}"


def optimizer_label(config: RunConfig) -> str:
    """The label of the optimizer with the options that were set."""
    return label_of(config.optimizer, config.optimizer_options)
