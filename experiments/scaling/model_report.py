"""The table and the picture of the model of pods."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from experiments.report import style
from experiments.scaling import peers
from experiments.scaling.chips import Chip, chip_of
from experiments.scaling.cost_table import Entry
from experiments.scaling.pod_model import StepTime, memory_bytes, step_time

TITLE = "A model, not a measurement"
CHIP_COUNTS = {2: [1, 4, 16, 64, 256], 3: [1, 8, 64, 512, 4096]}
MICRO_BATCHES = "Open markers: in micro-batches, whose cost is not modeled."


def modeled(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that the model applies to.

    Raises:
      ValueError: if it applies to none of them.
    """
    found = [
        entry
        for entry in entries
        if entry.case.layout == "data"
        and entry.case.micro_batches == 1
        and entry.cost.failure is None
    ]
    if not found:
        raise ValueError(
            f"the model applies to none of the {len(entries)} compiled steps: it needs "
            "one that is data-parallel, without micro-batches and fits into memory; "
            "compile for a larger slice, or omit the model with --compiled"
        )
    return found


def chip_counts(entry: Entry, chip: Chip, batch_size: int) -> list[int]:
    """Numbers of chips on which a batch fits into memory at once."""
    return [
        chips
        for chips in CHIP_COUNTS[chip.network_dimensions]
        if memory_bytes(entry, chips, batch_size) <= chip.memory
    ]


def reference_of(entry: Entry, entries: Sequence[Entry]) -> Entry:
    """Momentum SGD on the same topology.

    Raises:
      ValueError: if it has not been compiled.
    """
    wanted = dataclasses.replace(entry.case, optimizer=peers.MOMENTUM)
    for other in entries:
        if other.case == wanted:
            return other
    raise ValueError(f"the model needs {wanted} among the compiled steps")


def model_table(entries: Sequence[Entry], batch_size: int) -> str:
    """Modeled times and efficiency of entries that are `modeled`."""
    lines = [
        f"{TITLE}: batch {batch_size:,}, milliseconds per step. Numbers of chips on "
        "which the batch does not fit into memory at once are omitted.",
        "",
        "| chip | optimizer | chips | work | update | communication | efficiency |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for entry in sorted(entries, key=kind_of):
        chip = chip_of(entry.case.topology)
        for chips in chip_counts(entry, chip, batch_size):
            time = _time(entry, entries, chips, batch_size)
            lines.append(
                f"| {kind_of(entry)} | {peers.label_of(entry.case.optimizer)} | "
                f"{chips} | {1e3 * time.work:.1f} | {1e3 * time.update:.2f} | "
                f"{1e3 * time.communication:.2f} | {time.efficiency:.3f} |"
            )
    return "\n".join(lines) + "\n"


def draw(entries: Sequence[Entry], batch_size: int, path: Path) -> None:
    """Draws overhead against number of chips, one panel per kind of chip.

    The overhead is the share of a step that is not work on images: the update and the
    communication. Markers are open where the batch does not fit into memory at once.
    """
    kinds = sorted({kind_of(entry) for entry in entries})
    names = dict.fromkeys(entry.case.optimizer for entry in entries)
    look_of = style.looks_of({name: peers.color_of(name) for name in names})
    with style.styled():
        figure, rows = style.new_panels(1, len(kinds), 3.4, sharey=True)
        for panel, kind in zip(rows[0], kinds, strict=True):
            of_kind = [entry for entry in entries if kind_of(entry) == kind]
            for entry in of_kind:
                look = look_of[entry.case.optimizer]
                _draw_line(panel, entry, entries, batch_size, look)
            chip = chip_of(of_kind[0].case.topology)
            panel.set(title=f"{kind}, batch {batch_size:,}", xlabel="chips")
            style.set_log_scale(panel, "x", CHIP_COUNTS[chip.network_dimensions])
        rows[0][0].set_ylabel("update and communication,\n% of the step")
        style.set_log_scale(rows[0][0], "y")
        style.add_legend(figure, rows[0])
        style.add_remark(figure, f"{TITLE}. {MICRO_BATCHES}")
        style.save(figure, path)


def kind_of(entry: Entry) -> str:
    """The kind of chip, such as ``v5e``."""
    return entry.case.topology.partition(":")[0]


def _draw_line(
    panel: Axes,
    entry: Entry,
    entries: Sequence[Entry],
    batch_size: int,
    look: style.Look,
) -> None:
    chip = chip_of(entry.case.topology)
    counts = CHIP_COUNTS[chip.network_dimensions]
    fitting = chip_counts(entry, chip, batch_size)
    overhead = [
        100 * (1 - _time(entry, entries, n, batch_size).efficiency) for n in counts
    ]
    label = peers.label_of(entry.case.optimizer)
    panel.plot(counts, overhead, marker=look.marker, label=label, **look.line())
    places = [place for place, n in enumerate(counts) if n not in fitting]
    panel.plot(
        [counts[place] for place in places],
        [overhead[place] for place in places],
        **look.dots(markerfacecolor="white"),
    )


def _time(
    entry: Entry, entries: Sequence[Entry], chips: int, batch_size: int
) -> StepTime:
    reference, chip = reference_of(entry, entries), chip_of(entry.case.topology)
    return step_time(entry, reference, chip, chips, batch_size)
