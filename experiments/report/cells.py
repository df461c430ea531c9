"""Records grouped into cells: runs that differ in nothing but the seed."""

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence

from experiments.config import RunConfig
from experiments.records.files import RunRecord

RULE_LABELS = {
    "fr": "FR",
    "pr": "PR",
    "pr+": "PR+",
    "hs": "HS",
    "daniel": "Daniel",
    "constant": "constant β",
    "replay": "replayed β",
    "subspace": "in a plane",
}
BASELINE_LABELS = {
    "sgd": "SGD",
    "heavy_ball": "Heavy ball",
    "nesterov": "Nesterov",
    "rmsprop": "RMSProp",
    "adam": "Adam",
    "adamw": "AdamW",
    "lars": "LARS",
    "lamb": "LAMB",
    "muon": "Muon",
    "shampoo": "Shampoo",
    "lbfgs": "L-BFGS",
}
OPTION_LABELS = {
    "beta_smoothing": "β smoothing",
    "beta_max": "β ≤",
    "beta": "β =",
    "across_halves": "across halves",
    "curvature_period": "curvature every",
    "weight_decay": "decay",
    "b1": "β₁",
    "b2": "β₂",
}


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

    @property
    def family(self) -> str:
        """The name of the optimiser without its preconditioner and step control."""
        return optimizer_family(self.config.optimizer)

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
        optimizer_label(dataclasses.replace(cell.config, optimizer_options={}))
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


def optimizer_family(name: str) -> str:
    """The name without what follows a conjugacy rule, such as ``paper_nlcg_fr``."""
    conjugate = re.match(r"(paper_)?nlcg_[^_]+", name)
    return conjugate[0] if conjugate else name


def optimizer_label(config: RunConfig) -> str:
    """A readable name, such as ``NLCG PR+ · rms``, with the options that were set."""
    label = BASELINE_LABELS.get(config.optimizer)
    if label is None:
        stem, _, rest = config.optimizer.partition("nlcg_")
        rule, _, kind = rest.partition("_")
        label = f"{'Paper NLCG' if stem else 'NLCG'} {RULE_LABELS[rule]}"
        if kind:
            label += f" · {kind.replace('_', ', ')}"
    options = [
        f"{OPTION_LABELS.get(name, name)} {value:.3g}"
        for name, value in config.optimizer_options.items()
        if isinstance(value, int | float)
    ]
    return ", ".join([label, *options])
