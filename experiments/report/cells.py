"""Records grouped into cells: runs that differ in nothing but the seed."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from experiments.config import RunConfig
from experiments.optimizers import color_of, label_of
from experiments.records.files import RunRecord
from experiments.report.style import Look, looks_of

_OF_ALL_SIZES = ("dataset", "model")
_SHOWN = ("optimizer", "optimizer_options", "batch_size", "learning_rate", "seed")
LEAST_LOSS = 1e-6  # below it the cross-entropy of an example is rounding in float32


@dataclasses.dataclass(frozen=True)
class Cell:
    """The runs of one configuration.

    Attributes:
      records: one per seed, each complete or stopped.
      apart: settings that distinguish it from other cells with the same optimizer.
    """

    records: tuple[RunRecord, ...]
    apart: str = ""

    @property
    def config(self) -> RunConfig:
        """The configuration of the first seed."""
        return self.records[0].config

    @property
    def label(self) -> str:
        """A readable name of the optimizer with its options."""
        return self._with_apart(optimizer_label(self.config))

    @property
    def short_label(self) -> str:
        """The label without the numbers that were tuned."""
        options = self.config.optimizer_options.items()
        kinds = {n: v for n, v in options if isinstance(v, str | bool)}
        return self._with_apart(label_of(self.config.optimizer, kinds))

    @property
    def steps(self) -> int:
        """Steps of the longest run."""
        return max(steps_of(record) for record in self.records)

    @property
    def failures(self) -> int:
        """Runs that stopped, or ended with a training loss that is not finite."""
        return sum(_has_failed(record) for record in self.records)

    def has(self, name: str) -> bool:
        """Whether the summary of any run has a figure."""
        return any(math.isfinite(value) for value in self.values(name))

    def values(self, name: str) -> list[float]:
        """A figure of the summary per seed, NaN where a run has none."""
        found = [(record.summary or {}).get(name) for record in self.records]
        return [math.nan if value is None else float(value) for value in found]

    def _with_apart(self, label: str) -> str:
        return f"{label}, {self.apart}" if self.apart else label

    def median(self, name: str) -> float:
        """The median over seeds, infinite if half of them have no finite figure.

        A seed without a finite figure counts as the worst: its accuracy as minus
        infinity, any other figure as infinity. Of an even number of seeds the median is
        the mean of the two in the middle.
        """
        worst = -math.inf if name.endswith("accuracy") else math.inf
        return statistics.median(
            value if math.isfinite(value) else worst for value in self.values(name)
        )


def steps_of(record: RunRecord) -> int:
    """Steps that a run took."""
    if record.steps:
        return int(record.steps[-1]["step"]) + 1
    return int((record.summary or {}).get("step", 0))


def median_by_step(cell: Cell, name: str) -> np.ndarray:
    """The median over seeds of a metric of the steps.

    A value that is not finite counts as infinite, as does a step after the end of a
    run. The median is NaN at steps that no record holds: a record may begin late.
    """
    values = np.stack([_by_step(record, name, cell.steps) for record in cell.records])
    held = ~np.isnan(values).all(axis=0)
    medians = np.full(cell.steps, np.nan)
    medians[held] = np.nanmedian(values[:, held], axis=0)
    return medians


def longest_series(cell: Cell, name: str) -> np.ndarray:
    """A metric by step of the run that recorded most steps; NaN where it has none."""
    longest = max(cell.records, key=lambda record: len(record.steps))
    values = _by_step(longest, name, cell.steps)
    return np.where(np.isfinite(values), values, np.nan)


def _by_step(record: RunRecord, name: str, steps: int) -> np.ndarray:
    values = np.full(steps, np.inf)
    values[: steps_of(record)] = np.nan
    found = np.asarray(record.series(name))
    numbers = [line["step"] for line in record.steps]
    values[numbers] = np.where(np.isfinite(found), found, np.inf)
    return values


def group(records: Iterable[RunRecord]) -> list[Cell]:
    """Groups records into cells, in the order of their first records."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(key_of(record.config), []).append(record)
    cells = [Cell(tuple(members)) for members in found.values()]
    return [dataclasses.replace(c, apart=_apart(c, cells)) for c in cells]


def key_of(config: RunConfig) -> str:
    """What the runs of a cell have in common: all settings but the seed."""
    settings = dataclasses.asdict(dataclasses.replace(config, seed=0))
    return json.dumps(settings, sort_keys=True)


def _apart(cell: Cell, cells: Sequence[Cell]) -> str:
    """The settings that distinguish a cell from others with its label.

    Data set and model are compared with all of these, other settings with those of the
    same batch size; the learning rate has its own column.
    """
    own = cell.config
    twins = [other.config for other in cells if other.label == cell.label]
    names = [field.name for field in dataclasses.fields(RunConfig)]
    differing = [
        name
        for name in names
        if name not in _SHOWN
        and any(
            getattr(other, name) != getattr(own, name)
            for other in twins
            if name in _OF_ALL_SIZES or other.batch_size == own.batch_size
        )
    ]
    return ", ".join(f"{name}={getattr(own, name)}" for name in differing)


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
    bare = [cell.short_label for cell in cells]
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


def _has_failed(record: RunRecord) -> bool:
    if record.summary is None:
        return True
    loss = record.summary.get("train_loss")
    # The record of a run that ended may hold no evaluation.
    return "train_loss" in record.summary and (loss is None or not math.isfinite(loss))
