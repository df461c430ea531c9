"""The record of a SWAP run, and a table of records with accuracies and costs."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.config import RunConfig
from experiments.data import Dataset
from experiments.optimizers import label_of
from experiments.records.files import Line, header
from experiments.records.json_file import write_json
from experiments.records.old_names import current_config
from experiments.report.tables import median_and_range
from experiments.swap.config import SwapConfig
from experiments.swap.phases import Network, train_swap
from experiments.training import DivergedError


def record_swap(path: Path, config: SwapConfig, dataset: Dataset) -> Line:
    """Runs SWAP and writes one JSON object, in full or not at all.

    Costs are counted in epochs: gradients of single images, in gradient-equivalents,
    over the size of the training set.

    Raises:
      DivergedError: if the run diverges; the object then says why it ``stopped``.
    """
    line = {
        **header(config.large),
        "small": dataclasses.asdict(config.small),
        **config.settings(),
    }
    try:
        result = train_swap(config, dataset)
    except DivergedError as error:
        write_json(path, {**line, "stopped": str(error)})
        raise
    examples = dataset.train.labels.shape[0]
    line |= {
        "large": _figures(result.large),
        "after_workers": [_figures(network) for network in result.workers],
        "averaged": _figures(result.averaged),
        "large_steps": result.large_steps,
        "small_steps": result.small_steps,
        "large_epochs": result.gradients[0] / examples,
        "worker_epochs": result.gradients[1] / examples,
        "seconds": result.seconds,
    }
    write_json(path, line)
    return line


def swap_table(paths: Sequence[Path]) -> str:
    """A Markdown table of test accuracies and costs, one line per first phase.

    Each field is the median over seeds with their range, without runs that diverged;
    the first field gives the number of those.
    """
    groups: dict[str, list[Line]] = {}
    for path in paths:
        line = json.loads(path.read_text(encoding="utf-8"))
        config = RunConfig(**current_config(line["config"]))
        label = label_of(config.optimizer, config.optimizer_options)
        groups.setdefault(label, []).append(line)
    lines = [
        "| first phase | after it % | workers % | averaged % | steps in a row | "
        "epochs, all workers charged |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for label, all_runs in groups.items():
        runs = [run for run in all_runs if "stopped" not in run]
        lost = len(all_runs) - len(runs)
        if lost:
            label += f" ({lost} of {len(all_runs)} diverged)"
        if not runs:
            lines.append(f"| {label} | – | – | – | – | – |")
            continue
        large = [run["large"]["test_accuracy"] for run in runs]
        workers = [
            statistics.fmean(w["test_accuracy"] for w in run["after_workers"])
            for run in runs
        ]
        averaged = [run["averaged"]["test_accuracy"] for run in runs]
        first = runs[0]
        lines.append(
            f"| {label} | {_spread(large)} | {_spread(workers)} | {_spread(averaged)} "
            f"| {first['large_steps']} + {first['small_steps']} "
            f"| {first['large_epochs']:.1f} + {first['worker_epochs']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _figures(network: Network) -> Line:
    return {
        f"{split}_{name}": float(value)
        for split in ("train", "test")
        for name, value in getattr(network, split)._asdict().items()
    }


def _spread(accuracies: Sequence[float]) -> str:
    return median_and_range([100 * accuracy for accuracy in accuracies])
