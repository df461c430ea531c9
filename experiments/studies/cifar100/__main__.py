"""``python -m experiments.studies.cifar100``: the paper's comparison, and a tuned one.

``--size cpu``, an hour or so on two cores: ten classes of CIFAR-100 in 16x16 pixels,
1024 images, a ResNet-8 of half the width, 30 epochs. In this order:

1. the paper's recipe at the first batch size, for SGD, momentum, RMSProp and the
   paper's NLCG;
2. the same number of quasi-random trials for every method over learning rate, memory
   and weight decay, chosen by validation accuracy, and the best with fresh seeds;
3. the paper's recipe at the other batch sizes;
4. the mean of the β that NLCG found, as the constant memory of two methods that are
   tuned anew with it;
5. SWAP from two thirds of the tuned large-batch runs of two methods.

``--size paper`` is the paper's own size in 16x16 pixels, some three hours per run and
core, see `experiments.studies.cifar100.paper_size`; ``--size paper_half`` is the same
with half the filters, in a third of the time, and ``--size paper_resnet8`` with half
the filters and a quarter of the layers, in a twelfth, the tuned rows first. With
``--workers 2`` two runs are trained side by side, and a run that was stopped resumes
within a minute of lost work. ``--size gpu`` is the same in 32x32 pixels on a GPU, after
checks of the device.

Rerunning the command resumes where it stopped, with ``--seconds`` in calls of limited
length. It ends with a report of each table in its folder. Prepare the data first; on a
machine without tensorflow-datasets, with the files in a directory of your choice::

    python -m experiments.data.prepare cifar100 --source DIRECTORY --form arrays
    python -m experiments.studies.cifar100 --size cpu
    python -m experiments.studies.cifar100 --size paper --workers 2
    python -m experiments.studies.cifar100 --size gpu --seconds 540

``--small`` runs all of it with a few images and few epochs.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import rich.console
import tyro

from experiments import data
from experiments.errors import ending_with_a_message
from experiments.records.files import read_record
from experiments.report.write import write_report
from experiments.studies.cifar100 import paper_size
from experiments.studies.cifar100.plan import (
    ADAPTIVE,
    mean_beta,
    mean_beta_sweep,
    paper_runs,
    stages,
    swap_configs,
    tuned_records,
    tuned_sweep,
)
from experiments.studies.cifar100.sizes import CPU, SMALL, Size
from experiments.swap.records import swap_table
from experiments.tuning.runner import Runner
from experiments.tuning.study import run_study
from experiments.tuning.sweep import final_records

MODULE = "experiments.studies.cifar100"


@dataclasses.dataclass(frozen=True)
class Cifar100Arguments:
    """Compares optimizers on CIFAR-100, under the paper's recipe and tuned.

    Attributes:
      size: scale of the study.
      workers: number of processes that train side by side, with a CPU core each.
      small: run everything at small scale, to check that it works.
      seconds: a time limit: no run is started that would end later, judged by the
        longest so far.
      data_dir: folder of all prepared data sets.
      out: folder of the records, runs/cifar100_SIZE by default.
    """

    size: Literal["cpu", "paper", "paper_half", "paper_resnet8", "gpu"] = "cpu"
    workers: int = 1
    small: bool = False
    seconds: float = math.inf
    data_dir: Path = data.DATA_DIR
    out: Path | None = None


def write_reports(size: Size, out: Path, console: rich.console.Console) -> None:
    """Writes a report of each table into its folder, and ``swap.md``."""
    paper = [run for b in size.batch_sizes for run in paper_runs(size, b, out)]
    write_report([read_record(run.path) for run in paper], out / "paper", console)
    sizes = size.tuned_batch_sizes
    tuned = [
        r for b in sizes for r in final_records(tuned_sweep(size, b), out / "tuned")
    ]
    write_report(tuned, out / "tuned", console)
    if size.constant_memory:
        records = []
        for b in sizes:
            records += tuned_records(size, b, ADAPTIVE, out)
            sweep = mean_beta_sweep(size, b, mean_beta(size, b, out))
            records += final_records(sweep, out / "mean_beta")
        write_report(records, out / "mean_beta", console)
    if size.swap_methods:
        table = swap_table(list(swap_configs(size, out)))
        (out / "swap.md").write_text(table, encoding="utf-8")


def training_seconds(out: Path) -> float:
    """Seconds of training, SWAP included, and of compiling programs of single runs."""
    records = [read_record(path) for path in out.rglob("*.jsonl")]
    trained = [record.steps[-1]["seconds"] for record in records]
    # Runs that share a program have exactly the same number, which counts once.
    compiled = {r.summary["compile_seconds"] for r in records if r.summary is not None}
    for path in (out / "swap").glob("*.json"):
        line = json.loads(path.read_text(encoding="utf-8"))
        trained += line.get("seconds", [])  # none of a run that diverged
    return math.fsum(trained) + math.fsum(compiled)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(Cifar100Arguments, prog=f"python -m {MODULE}", args=arguments)
    console = rich.console.Console()
    out = given.out or Path(f"runs/cifar100_{given.size}")
    runner = Runner(given.data_dir, checkpoints=given.size != "cpu")
    with ending_with_a_message(MODULE, arguments):
        if given.size == "cpu":
            size = SMALL if given.small else CPU
            planned = stages(size, out, runner)
        else:
            sizes = paper_size.SMALL_SIZES if given.small else paper_size.SIZES
            planned = paper_size.stages(sizes[given.size], out, runner)
        complete = run_study(
            planned, runner, console, workers=given.workers, seconds=given.seconds
        )
        if given.size != "cpu":
            console.print(paper_size.write_table(out), highlight=False)
        if complete:
            if given.size == "cpu":
                write_reports(size, out, console)
            minutes = training_seconds(out) / 60
            console.print(f"{minutes:.1f} minutes of training and compiling in all")


if __name__ == "__main__":
    main()
