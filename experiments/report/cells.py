"""Records grouped into cells: runs that differ in nothing but the seed."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence

from experiments.config import RunConfig
from experiments.optimizers import color_of, label_of
from experiments.records.files import RunRecord
from experiments.report.style import Look, looks_of

LEAST_LOSS = 1e-6  # below it the cross-entropy of an example is rounding in float32


@dataclasses.dataclass(frozen=True)
class Cell:
    """The runs of one configuration.

    Attributes:
      records: one per seed, each complete or stopped.
    """

    records: tuple[RunRecord, ...]

    @property
    def config(self) -> RunConfig:
        """The configuration of the first seed."""
        return self.records[0].config

    @property
    def label(self) -> str:
        """A readable name of the optimizer with its options."""
        return optimizer_label(self.config)

    @property
    def steps(self) -> int:
        """Steps of the longest run."""
        return max(steps_of(record) for record in self.records)

    @property
    def failures(self) -> int:
        """Runs that ended without a finite training loss."""
        return sum(not math.isfinite(loss) for loss in self.values("train_loss"))

    def has(self, name: str) -> bool:
        """Whether any run has a figure of its summary."""
        return any(math.isfinite(value) for value in self.values(name))

    def values(self, name: str) -> list[float]:
        """A figure of the summary per seed, NaN where a run has none."""
        found = [(record.summary or {}).get(name) for record in self.records]
        return [math.nan if value is None else float(value) for value in found]

    def median(self, name: str) -> float:
        """The median over seeds, infinite if half of them have no finite figure.

        Of an even number of seeds it is the mean of the two in the middle.
        """
        finite = [v if math.isfinite(v) else math.inf for v in self.values(name)]
        return statistics.median(finite)


def steps_of(record: RunRecord) -> int:
    """Steps that a run took."""
    return len(record.steps) or int((record.summary or {}).get("step", 0))


def group(records: Iterable[RunRecord]) -> list[Cell]:
    """Groups records into cells, in the order of their first records."""
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


def by_method(cells: Sequence[Cell]) -> dict[str, dict[str, Cell]]:
    """The cells by short label, then by the name of their batch size."""
    methods: dict[str, dict[str, Cell]] = {}
    for cell, label in zip(cells, short_labels(cells), strict=True):
        size = batch_size_name(cell.config.batch_size)
        methods.setdefault(label, {})[size] = cell
    return methods


def short_labels(cells: Sequence[Cell]) -> list[str]:
    """A label per cell, without the numbers that were tuned if it is then unique.

    Unique means: no other cell of the same batch size has it.
    """
    bare = []
    for cell in cells:
        options = cell.config.optimizer_options
        kinds = {n: v for n, v in options.items() if isinstance(v, str | bool)}
        bare.append(label_of(cell.config.optimizer, kinds))
    places = [
        (cell.config.batch_size, label) for cell, label in zip(cells, bare, strict=True)
    ]
    return [
        label if places.count(place) == 1 else cell.label
        for cell, label, place in zip(cells, bare, places, strict=True)
    ]


def looks(cells: Sequence[Cell]) -> dict[str, Look]:
    """How each method is drawn, by short label."""
    return looks_of(
        {
            label: color_of(cell.config.optimizer)
            for cell, label in zip(cells, short_labels(cells), strict=True)
        }
    )


def optimizer_label(config: RunConfig) -> str:
    """A readable name of the optimizer of a run, with the options that were set."""
    return label_of(config.optimizer, config.optimizer_options)


def batch_size_name(size: int | None) -> str:
    """Names a batch size in words."""
    return "full batch" if size is None else f"batch size {size}"
