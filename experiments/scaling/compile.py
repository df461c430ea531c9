"""``python -m experiments.scaling.compile``: the step of ResNet-50, compiled for pods.

No TPU is needed, only its compiler (``pip install '.[tpu]'``). For each topology,
layout and optimizer it reports what a chip needs: memory, operations, communication.
With ``JAX_OPTIMIZATION_LEVEL=O0`` in the environment, the default here, each takes
about a minute; figures that exist are not computed again. Each step is compiled in a
separate process with a time limit, because the compiler may search very long for a
schedule if a program does not fit.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console
import tyro

from experiments.config import RunConfig
from experiments.errors import ending_with_a_message
from experiments.records.files import origin
from experiments.scaling import peers
from experiments.scaling.compiled_step import Problem, StepCost, cost_of, lower_step
from experiments.scaling.cost_table import Case, Entry, markdown
from experiments.scaling.own_process import StoppedError, call_in_process
from experiments.scaling.topologies import devices_of
from experiments.training import meshes

ENVIRONMENT = {
    "JAX_OPTIMIZATION_LEVEL": "O0",
    "JAX_PLATFORMS": "cpu",  # libtpu only compiles
}

MODULE = "experiments.scaling.compile"


@dataclasses.dataclass(frozen=True)
class CompileArguments:
    """Compiles training steps for TPU slices and reports what they need.

    Attributes:
      topologies: slices to compile for.
      layouts: ``data`` (data-parallel) and ``hybrid``, where parameters and state are
        split over the first dimension of the slice.
      optimizers: names of `experiments.optimizers.OPTIMIZERS` with options, such as
        ``nlcg,rule=fr``; also ``lbfgs_search`` and ``nlcg_search``, which have line
        searches.
      model: a name in `experiments.models.MODELS`.
      image_size: height and width of the images, in pixels.
      batch_size: examples per step, on all chips together.
      images_per_chip: most images that a chip computes at a time; a larger share of the
        batch is split into micro-batches. None for no limit.
      partitioning: ``jit`` or ``shard_map``, see `experiments.config.RunConfig`.
      compute_dtype: dtype of the network.
      minutes: time limit for compiling a step.
      out: file of JSON lines to which figures are appended; the table is written next
        to it.
    """

    topologies: tuple[str, ...] = ("v5e:2x2", "v5e:16x16", "v5p:8x8x8")
    layouts: tuple[str, ...] = ("data", "hybrid")
    optimizers: tuple[str, ...] = peers.PEERS
    model: str = "resnet50"
    image_size: int = 224
    batch_size: int = 65_536
    images_per_chip: int | None = 256
    partitioning: str = "jit"
    compute_dtype: str = "bfloat16"
    minutes: float = 15.0
    out: Path = Path("runs/scaling/compiled.jsonl")

    def __post_init__(self) -> None:
        for layout in self.layouts:
            if layout not in ("data", "hybrid"):
                raise ValueError(
                    f"layouts={self.layouts!r} has {layout!r}; allowed are 'data' and "
                    "'hybrid'"
                )
        for name in ("image_size", "batch_size", "images_per_chip"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes!r} must be above 0")


def cases_of(arguments: CompileArguments, topology: str, chips: int) -> list[Case]:
    """The steps to compile for one topology."""
    share = arguments.images_per_chip or arguments.batch_size
    micro_batches = max(1, -(-arguments.batch_size // (chips * share)))
    return [
        Case(
            topology=topology,
            layout=layout,
            optimizer=optimizer,
            model=arguments.model,
            image_size=arguments.image_size,
            batch_size=arguments.batch_size,
            micro_batches=micro_batches,
            partitioning=arguments.partitioning,
            compute_dtype=arguments.compute_dtype,
        )
        for layout in arguments.layouts
        for optimizer in arguments.optimizers
    ]


def compile_case(case: Case) -> StepCost:
    """Compiles one step for the devices of its topology."""
    side = int(case.topology.partition(":")[2].partition("x")[0])
    shard_devices = side if case.layout == "hybrid" else 1
    chosen = peers.choice(case.optimizer)
    config = RunConfig(
        model=case.model,
        optimizer=chosen.name,
        optimizer_options=chosen.options,
        batch_size=case.batch_size,
        micro_batches=case.micro_batches,
        compute_dtype=case.compute_dtype,
        partitioning=case.partitioning,
        shard_devices=shard_devices,
    )
    mesh = meshes.make_mesh(None, shard_devices, devices=devices_of(case.topology))
    return cost_of(lower_step(config, Problem(case.image_size), mesh))


def compile_within(case: Case, minutes: float) -> StepCost:
    """Compiles one step in a separate process; the result says if it was stopped."""
    begin = time.perf_counter()
    try:
        return call_in_process(compile_case, case, seconds=60 * minutes)
    except StoppedError as error:
        return StepCost(
            compile_seconds=time.perf_counter() - begin, not_compiled=str(error)
        )


def compile_all(
    arguments: CompileArguments, console: rich.console.Console
) -> list[Entry]:
    """Compiles the steps that are not in the file; returns all that were requested."""
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    known = {entry.case: entry for entry in read_entries(arguments.out)}
    made = origin()
    asked = []
    for topology in arguments.topologies:
        chips = len(devices_of(topology))
        for case in cases_of(arguments, topology, chips):
            if case not in known:
                with console.status(f"{topology} {case.layout} {case.optimizer}"):
                    cost = compile_within(case, arguments.minutes)
                known[case] = Entry(case, chips, made["commit"] or "", cost)
                line = made | dataclasses.asdict(known[case])
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                console.print(_line(known[case]), soft_wrap=True)
            asked.append(known[case])
    return asked


def read_entries(path: Path) -> list[Entry]:
    """The entries of a file; an empty list if it does not exist."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_entry(json.loads(line)) for line in lines]


def _entry(fields: dict[str, Any]) -> Entry:
    cost = fields["cost"]
    cost["collectives"] = {k: tuple(v) for k, v in cost["collectives"].items()}
    return Entry(
        Case(**fields["case"]), fields["chips"], fields["commit"], StepCost(**cost)
    )


def _line(entry: Entry) -> str:
    case, cost = entry.case, entry.cost
    name = f"{case.topology} {case.layout} {case.optimizer}"
    if cost.failure is not None:
        return f"{name}: {cost.failure}"
    return (
        f"{name}: peak {cost.peak_bytes / 2**30:.2f} GiB, {cost.flops / 1e12:.2f} "
        f"TFLOP, {cost.collective_bytes / 1e6:.1f} MB in {dict(cost.collectives)}, "
        f"{cost.compile_seconds:.0f} s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(CompileArguments, prog=f"python -m {MODULE}", args=arguments)
    console = rich.console.Console()
    with ending_with_a_message(MODULE, arguments):
        table = markdown(compile_all(given, console))
        given.out.with_suffix(".md").write_text(table, encoding="utf-8")
        console.print(table, markup=False, soft_wrap=True)


if __name__ == "__main__":
    if any(name not in os.environ for name in ENVIRONMENT):
        # JAX, which is imported by now, has read them already.
        os.environ.update({**ENVIRONMENT, **os.environ})
        os.execv(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]])
    main()
