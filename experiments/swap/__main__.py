"""``python -m experiments.swap``: one run of SWAP, from the command line to its record.

For example, with the optimizer of each phase and four workers along a mesh of devices::

    python -m experiments.swap --config.large.optimizer large_batch_nlcg
    --config.small.optimizer nesterov --config.small.learning-rate 0.02
    --config.stop-accuracy 0.9 --config.layout mesh --record runs/swap.json
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import rich.console
import tyro

from experiments import data
from experiments.errors import ending_with_a_message
from experiments.records.files import Line
from experiments.swap.config import SwapConfig
from experiments.swap.records import record_swap

MODULE = "experiments.swap"


@dataclasses.dataclass(frozen=True)
class SwapArguments:
    """Trains with large batches, then workers with small ones, and averages them.

    Attributes:
      config: settings of both phases; data set and model must be the same in both.
      record: the JSON file to write; it must not exist.
      data_dir: folder of all prepared data sets.
    """

    config: SwapConfig = dataclasses.field(default_factory=SwapConfig)
    record: Path = Path("runs/swap.json")
    data_dir: Path = data.DATA_DIR


def run(arguments: SwapArguments, console: rich.console.Console) -> Line:
    """Runs SWAP and prints the test accuracy after each phase, and the cost."""
    if arguments.record.exists():
        raise FileExistsError(
            f"the record {str(arguments.record)!r} exists; name another, or delete it"
        )
    large = arguments.config.large
    for config in (large, arguments.config.small):
        config.check_names()
    dataset = data.load(large.dataset, large.data_options(arguments.data_dir))
    with console.status("running"):
        line = record_swap(arguments.record, arguments.config, dataset)
    workers = [found["test_accuracy"] for found in line["after_workers"]]
    console.print(
        f"test accuracy {line['large']['test_accuracy']:.1%} after large batches, "
        f"{min(workers):.1%} to {max(workers):.1%} of the workers, "
        f"{line['averaged']['test_accuracy']:.1%} averaged; "
        f"{line['large_epochs']:.1f} + {line['worker_epochs']:.1f} epochs; record in "
        f"{arguments.record}"
    )
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(SwapArguments, prog=f"python -m {MODULE}", args=arguments)
    with ending_with_a_message(MODULE, arguments, again="start again with"):
        run(given, rich.console.Console())


if __name__ == "__main__":
    main()
