"""``python -m experiments.scaling``: weak scaling on this machine, and a model of pods.

The first part times steps on virtual devices of this machine and gives ratios. The
second models a step on many chips from the figures that
``python -m experiments.scaling.compile`` wrote; see `experiments.scaling.pod_model`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import rich.console
import tyro

from experiments.errors import ending_with_a_message
from experiments.scaling import peers
from experiments.scaling.compile import read_entries
from experiments.scaling.model_report import draw, model_table, modeled
from experiments.scaling.weak_scaling import WeakScaling, measure
from experiments.virtual_devices import ask_for_virtual_devices

MODULE = "experiments.scaling"


@dataclasses.dataclass(frozen=True)
class ScalingArguments:
    """Reports how the time of a step scales with the number of devices.

    Attributes:
      compiled: files that experiments.scaling.compile wrote; none to omit the model.
      batch_size: images per step on all chips together, for the model.
      optimizers: optimizers to compare in weak scaling; the first is the reference.
      devices: numbers of virtual devices in weak scaling; the first must be 1.
      images_per_device: images per step and device in weak scaling.
      rounds: timed steps per optimizer; 0 to omit weak scaling.
      out: folder for scaling.md and scaling.png.
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
        if self.devices[:1] != (1,):
            raise ValueError(f"devices={self.devices!r} must begin with 1")
        if not self.rounds and not self.compiled:
            raise ValueError("rounds=0 with an empty compiled leaves nothing to report")
        for path in self.compiled:
            if not path.exists():
                raise ValueError(
                    f"compiled={str(path)!r} does not exist; make it with "
                    "python -m experiments.scaling.compile"
                )


def weak_scaling_table(measured: Sequence[WeakScaling]) -> str:
    """The ratios, one row per optimizer and number of devices."""
    reference = peers.label_of(measured[0].optimizer)
    lines = [
        "| optimizer | virtual devices | time / (devices x time of 1) | time / "
        f"{reference} |",
        "|---|---:|---:|---:|",
        *(
            f"| {peers.label_of(one.optimizer)} | {one.devices} | {one.ratio:.2f} | "
            f"{one.to_reference:.2f} |"
            for one in measured
        ),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(ScalingArguments, prog=f"python -m {MODULE}", args=arguments)
    with ending_with_a_message(MODULE, arguments, again="start again with"):
        run(given, rich.console.Console())


def run(given: ScalingArguments, console: rich.console.Console) -> None:
    """Measures, models and writes the report.

    Raises:
      ValueError: if a name is unknown, or no compiled step suits the model.
    """
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
    given.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(parts)
    (given.out / "scaling.md").write_text(text, encoding="utf-8")
    if entries:
        draw(entries, given.batch_size, given.out / "scaling.png")
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    ask_for_virtual_devices(8)  # the imports start no device
    main()
