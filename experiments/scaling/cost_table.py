"""Compiled steps, and tables of their costs."""

import dataclasses
import itertools
from collections.abc import Sequence

from experiments.scaling import peers
from experiments.scaling.compiled_step import StepCost

HEADINGS = (
    "optimizer",
    "arguments GiB",
    "temporaries GiB",
    "peak GiB",
    "peak / AdamW",
    "TFLOP",
    "collectives: count, MB",
    "MB / momentum",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile; see `experiments.scaling.compile.CompileArguments`."""

    topology: str
    layout: str
    optimizer: str
    model: str
    image_size: int
    batch_size: int
    micro_batches: int
    partitioning: str
    compute_dtype: str

    @property
    def setting(self) -> tuple[object, ...]:
        """All but the optimizer."""
        fields = dataclasses.asdict(self)
        del fields["optimizer"]
        return tuple(fields.values())


@dataclasses.dataclass(frozen=True)
class Entry:
    """A case and its cost.

    Attributes:
      case: the step that was compiled.
      chips: number of chips of the topology.
      commit: commit of the code.
      cost: cost per chip.
    """

    case: Case
    chips: int
    commit: str
    cost: StepCost


def markdown(entries: Sequence[Entry]) -> str:
    """One table per topology, layout and batch, with ratios to AdamW and momentum."""
    tables = []
    for _, group in itertools.groupby(entries, key=lambda entry: entry.case.setting):
        tables.append(_table(list(group)))
    return "\n".join(tables)


def _table(entries: Sequence[Entry]) -> str:
    case = entries[0].case
    by_name = {entry.case.optimizer: entry.cost for entry in entries}
    parts = f" in {case.micro_batches} micro-batches" if case.micro_batches > 1 else ""
    lines = [
        f"**{case.topology}, {case.layout}** ({entries[0].chips} chips, {case.model} "
        f"at {case.image_size} pixels, {case.compute_dtype}, `{case.partitioning}`, "
        f"batch {case.batch_size:,}{parts})",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|---|{'---:|' * (len(HEADINGS) - 1)}",
        *(_row(name, cost, by_name) for name, cost in by_name.items()),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, cost: StepCost, by_name: dict[str, StepCost]) -> str:
    if cost.failure is not None:
        cells = [cost.failure, *[""] * (len(HEADINGS) - 2)]
    else:
        adamw, momentum = by_name.get(peers.ADAMW), by_name.get(peers.MOMENTUM)
        cells = [
            f"{cost.argument_bytes / 2**30:.3f}",
            f"{cost.temporary_bytes / 2**30:.2f}",
            f"{cost.peak_bytes / 2**30:.2f}",
            _ratio(cost.peak_bytes, adamw.peak_bytes if adamw else 0),
            f"{cost.flops / 1e12:.2f}",
            _communication(cost),
            _ratio(cost.collective_bytes, momentum.collective_bytes if momentum else 0),
        ]
    return f"| {peers.label_of(name)} | {' | '.join(cells)} |"


def _communication(cost: StepCost) -> str:
    return ", ".join(
        f"{count} {kind}, {size / 1e6:.2f}"
        for kind, (count, size) in cost.collectives.items()
    )


def _ratio(mine: float, other: float) -> str:
    return f"{mine / other:.4f}" if other else ""
