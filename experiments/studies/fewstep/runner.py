"""All runs of a study in their order, those that are recorded already left out."""

import contextlib
import dataclasses
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import data
from experiments.config import RunConfig
from experiments.records.files import RunRecord, read_record
from experiments.records.run import record_run
from experiments.studies.fewstep.plan import (
    ABLATED,
    Method,
    Options,
    Study,
    Task,
    config_of,
)
from experiments.training import (
    CompiledProgram,
    DivergedError,
    compile_program,
    make_program,
)
from experiments.tuning import learning_rate_search
from experiments.tuning.learning_rate_search import Criterion, Trial

# How far sixty steps get is a question to the training loss. Chosen on the validation
# loss, methods that fit the images would be held back by smaller rates.
CHOSEN_BY: Criterion = "train_loss"


class Cell(NamedTuple):
    """A run and the place of its record."""

    config: RunConfig
    path: Path


class Runner:
    """Runs cells; neighbours that differ in rate and seed share a compiled program.

    Args:
      data_dir: folder of all prepared data sets.
    """

    def __init__(self, data_dir: Path):
        self._data_dir = data_dir
        self._datasets: dict[tuple[str, data.DataOptions], data.Dataset] = {}
        self._compiled: tuple[RunConfig, CompiledProgram] | None = None

    def run(self, cell: Cell) -> str:
        """Trains and leaves a record; says in a few words what came out."""
        dataset = self._dataset(cell.config)
        # The learning rate and the seed are part of the state, not of the program.
        shared = dataclasses.replace(cell.config, learning_rate=1.0, seed=0)
        if self._compiled is None or self._compiled[0] != shared:
            program = make_program(cell.config, dataset)
            self._compiled = (shared, compile_program(program, dataset))
        try:
            summary = record_run(
                cell.path, self._compiled[1], cell.config, dataset, overwrite=True
            )
        except DivergedError:
            return "diverged"
        return f"loss {summary['train_loss']:.4f}, {summary['seconds']:.1f} s"

    def _dataset(self, config: RunConfig) -> data.Dataset:
        key = (config.dataset, config.data_options(self._data_dir))
        if key not in self._datasets:
            self._datasets[key] = data.load(*key)
        return self._datasets[key]


def finished(path: Path) -> RunRecord | None:
    """The record of a run that reached its end or diverged, else None."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        record = read_record(path)
        if record.summary is not None or record.stopped is not None:
            return record
    return None


def cells(study: Study, out: Path) -> Iterator[Cell]:
    """All cells in their order; later ones depend on the records of earlier ones."""
    for task in study.tasks:
        for divisor in task.batches:
            folder = out / task.name / f"part{divisor}"
            yield from _comparison(study, task, divisor, task.methods, folder)
            if task.name == study.ablated and ABLATED in task.methods:
                ablations = _ablations(folder)
                yield from _comparison(study, task, divisor, ablations, folder)


def _comparison(
    study: Study, task: Task, divisor: int, methods: tuple[Method, ...], folder: Path
) -> Iterator[Cell]:
    """Trials of all methods, then the best of each with fresh seeds."""
    variants = [
        (method, options) for method in methods for options in method.variants()
    ]

    def cell(
        number: int, learning_rate: float, seed: int, kind: str = "search"
    ) -> Cell:
        method, options = variants[number]
        config = config_of(
            study,
            task,
            divisor,
            method,
            options=options,
            learning_rate=learning_rate,
            seed=seed,
        )
        return Cell(config, folder / kind / f"{_stem(config)}.jsonl")

    def trials(number: int) -> list[Trial]:
        return [_trial(cell(number, rate, study.search_seed)) for rate in rates[number]]

    rates = [
        learning_rate_search.log_grid(
            method.centre, study.grid_points, study.grid_factor
        )
        if method.tuned
        else []
        for method, _ in variants
    ]
    tuned = [number for number, grid in enumerate(rates) if grid]
    for number in tuned:
        yield from (cell(number, rate, study.search_seed) for rate in rates[number])
    for _ in range(study.grid_extensions):
        best_of_methods = [
            min(
                (n for n in tuned if variants[n][0] is method),
                key=lambda n: _loss(_best(trials(n))),
            )
            for method in methods
            if method.tuned
        ]
        if not any(
            learning_rate_search.is_on_edge(trials(number), CHOSEN_BY)
            for number in best_of_methods
        ):
            break
        for number in tuned:
            more = learning_rate_search.extension(
                trials(number), study.grid_factor, CHOSEN_BY
            )
            yield from (cell(number, rate, study.search_seed) for rate in more)
            rates[number] += more
    for method in methods:
        own = [n for n, (found, _) in enumerate(variants) if found is method]
        number, rate = own[0], method.centre
        if method.tuned:
            best = {n: _best(trials(n)) for n in own}
            number = min(own, key=lambda n: _loss(best[n]))
            rate = best[number].learning_rate
        yield from (cell(number, rate, seed, "final") for seed in study.final_seeds)


def _ablations(folder: Path) -> tuple[Method, ...]:
    """The mean of the β that `ABLATED` found, and its replay, as methods."""
    found = [
        record.series("beta")
        for path in sorted((folder / "final").glob("*.jsonl"))
        if (record := read_record(path)).config.optimizer == ABLATED.optimizer
        and record.config.optimizer_options == ABLATED.options
        and record.summary is not None
    ]
    if not found:
        return ()
    betas = [round(float(beta), 4) for beta in np.median(found, axis=0)]
    mean = round(statistics.fmean(betas), 3)
    preconditioner = ABLATED.optimizer.rpartition("_")[2]
    return (
        Method(f"nlcg_constant_{preconditioner}", ABLATED.centre, {"beta": mean}),
        Method(f"nlcg_replay_{preconditioner}", ABLATED.centre, {"betas": betas}),
    )


def _trial(cell: Cell) -> Trial:
    summary = read_record(cell.path).summary or {}
    names = ("train_loss", "validation_loss", "validation_accuracy")
    figures = [summary.get(name) for name in names]
    return Trial(
        cell.config.learning_rate,
        *(float("nan") if figure is None else figure for figure in figures),
    )


def _best(trials: list[Trial]) -> Trial:
    return learning_rate_search.best_trial(trials, CHOSEN_BY)


def _loss(trial: Trial) -> float:
    loss = trial.train_loss
    return loss if np.isfinite(loss) else float("inf")


def _stem(config: RunConfig) -> str:
    options = [
        f"{name}{value:g}" if isinstance(value, int | float) else name
        for name, value in _named(config.optimizer_options)
    ]
    rate, seed = f"lr{config.learning_rate:.5g}", f"seed{config.seed}"
    return "-".join([config.optimizer, *options, rate, seed])


def _named(options: Options) -> list[tuple[str, object]]:
    return sorted(json.loads(json.dumps(dict(options))).items())
