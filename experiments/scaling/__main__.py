"""``python -m experiments.scaling``: weak scaling here, and a model of pods.

The first part times steps on virtual devices of this machine and gives ratios. The
second draws efficiency against the number of chips, from what
``python -m experiments.scaling.compile`` has left; see `experiments.scaling.pod_model`.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import rich.console
import tyro

from experiments.scaling import peers
from experiments.scaling.chips import Chip, chip_of
from experiments.scaling.compile import read_entries
from experiments.scaling.cost_table import Entry
from experiments.scaling.pod_model import memory_bytes, step_time
from experiments.scaling.weak_scaling import WeakScaling, measure

TITLE = "A model, not a measurement"
CHIP_COUNTS = {2: [1, 4, 16, 64, 256], 3: [1, 8, 64, 512, 4096]}


@dataclasses.dataclass(frozen=True)
class ScalingArguments:
    """Reports how steps scale.

    Attributes:
      compiled: figures of ``experiments.scaling.compile``; one file or several, or none
        to leave the model out.
      batch_size: images in a step on all chips together, for the model.
      optimizers: for weak scaling; the first is the reference.
      devices: numbers of virtual devices, for weak scaling; one of them 1.
      images_per_device: in a step, for weak scaling.
      rounds: turns of each optimizer; 0 leaves weak scaling out.
      out: folder of ``scaling.md`` and ``scaling.png``.
    """

    compiled: tuple[Path, ...] = (Path("runs/scaling/compiled.jsonl"),)
    batch_size: int = 65_536
    optimizers: tuple[str, ...] = ("heavy_ball", "adamw", "nlcg")
    devices: tuple[int, ...] = (1, 2, 4, 8)
    images_per_device: int = 64
    rounds: int = 20
    out: Path = Path("runs/scaling")

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds!r} must not be below 0")
        if not self.rounds and not self.compiled:
            raise ValueError("rounds=0 with an empty compiled leaves nothing to report")
        for path in self.compiled:
            if not path.exists():
                raise ValueError(
                    f"compiled={str(path)!r} does not exist; make it with "
                    "python -m experiments.scaling.compile"
                )


def weak_scaling_table(measured: Sequence[WeakScaling]) -> str:
    """The ratios, a line for each optimizer and number of devices."""
    lines = [
        "| optimizer | virtual devices | time / (devices x time of 1) | / reference |",
        "|---|---:|---:|---:|",
        *(
            f"| {one.optimizer} | {one.devices} | {one.ratio:.2f} | "
            f"{one.to_reference:.2f} |"
            for one in measured
        ),
    ]
    return "\n".join(lines) + "\n"


def modeled(entries: Sequence[Entry]) -> list[Entry]:
    """Those that the model is for.

    Raises:
      ValueError: if it is for none of them.
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
            f"none of the {len(entries)} compiled steps is one that the model is for, "
            "data-parallel, without micro-batches and within memory; compile for a "
            "larger slice, or leave the model out with --compiled"
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
    """Modeled times and efficiency of what is `modeled`."""
    lines = [
        f"{TITLE}: batch {batch_size:,}, milliseconds of a step. Numbers of chips at "
        "which the batch does not fit into memory at once are left out.",
        "",
        "| chip | optimizer | chips | work | update | communication | efficiency |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for entry in entries:
        chip = chip_of(entry.case.topology)
        reference = reference_of(entry, entries)
        for chips in chip_counts(entry, chip, batch_size):
            time = step_time(entry, reference, chip, chips, batch_size)
            lines.append(
                f"| {entry.case.topology.partition(':')[0]} | {entry.case.optimizer} | "
                f"{chips} | {1e3 * time.work:.1f} | {1e3 * time.update:.2f} | "
                f"{1e3 * time.communication:.2f} | {time.efficiency:.3f} |"
            )
    return "\n".join(lines) + "\n"


def draw(entries: Sequence[Entry], batch_size: int, path: Path) -> None:
    """Efficiency against chips of what is `modeled`, a panel for each kind.

    Dashed with open markers where the batch does not fit at once: micro-batches are
    then taken to cost no time of their own.
    """
    kinds = sorted({entry.case.topology.partition(":")[0] for entry in entries})
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4.5 * len(kinds), 3.6), squeeze=False, sharey=True
    )
    for panel, kind in zip(panels[0], kinds, strict=True):
        for entry in entries:
            if entry.case.topology.partition(":")[0] != kind:
                continue
            chip = chip_of(entry.case.topology)
            reference = reference_of(entry, entries)
            fitting = chip_counts(entry, chip, batch_size)
            color = peers.color_of(entry.case.optimizer)
            for counts, style in (
                (CHIP_COUNTS[chip.network_dimensions], {"ls": "--", "mfc": "white"}),
                (fitting, {"ls": "-", "label": entry.case.optimizer}),
            ):
                shares = [
                    step_time(entry, reference, chip, n, batch_size).efficiency
                    for n in counts
                ]
                panel.semilogx(counts, shares, marker="o", base=2, color=color, **style)
        panel.set_title(f"{kind}, batch {batch_size:,}")
        panel.set_xlabel("chips")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="lower left")
    panels[0][0].set_ylabel("share of the time that is work on images")
    figure.suptitle(f"{TITLE} (dashed: in micro-batches, at no cost of their own)")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    try:
        given = tyro.cli(ScalingArguments, args=arguments)
        entries = [entry for path in given.compiled for entry in read_entries(path)]
        if given.compiled:
            entries = modeled(entries)
        parts = []
        if given.rounds:
            measured = measure(
                given.optimizers, given.devices, given.images_per_device, given.rounds
            )
            parts.append(weak_scaling_table(measured))
        if entries:
            parts.append(model_table(entries, given.batch_size))
    except ValueError as error:
        sys.exit(f"error: {error}")
    given.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(parts)
    (given.out / "scaling.md").write_text(text, encoding="utf-8")
    if entries:
        draw(entries, given.batch_size, given.out / "scaling.png")
    rich.console.Console().print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    flag = "--xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        # Read when JAX starts its backend, which no import does.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}=8".strip()
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where virtual devices are
    main()
