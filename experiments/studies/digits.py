"""``python -m experiments.studies.digits``: tuned optimisers on handwritten digits.

Every method takes the same number of steps and gets the same number of trials of its
learning rate; the chosen one runs again on fresh seeds.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.console
import rich.progress
import tyro

from experiments import data
from experiments.config import RunConfig
from experiments.records.files import read_record
from experiments.records.run import record_run
from experiments.report.__main__ import write_report
from experiments.report.cells import optimizer_label
from experiments.training import (
    CompiledProgram,
    DivergedError,
    compile_program,
    make_program,
    run_epochs,
)
from experiments.tuning import learning_rate_search
from experiments.tuning.learning_rate_search import Trial


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimiser of the demo.

    Attributes:
      optimizer: a name in `experiments.optimizers.OPTIMIZERS`.
      centre: of the grid of learning rates.
      options: of the optimiser.
    """

    optimizer: str
    centre: float
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)


METHODS = (
    Method("sgd", 0.4),
    Method("nesterov", 0.2),
    Method("adam", 0.02),
    Method("nlcg_fr", 0.4),
    Method("nlcg_fr_rms", 0.006),
    Method("nlcg_fr_secant", 0.4),
    Method("nlcg_pr+", 0.4),
    Method("nlcg_pr+_rms", 0.005),
    Method("nlcg_pr+_secant", 0.4),
    Method("nlcg_pr+_rms", 0.01, {"beta_smoothing": 0.9}),
    Method("paper_nlcg_fr", 0.4),
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much the demo does.

    Attributes:
      methods: that are compared.
      batch_sizes: None is the full batch.
      steps: of every run.
      grid_points: learning rates that are tried at first.
      grid_factor: between neighbours of the grid.
      grid_extensions: how often the grids may grow.
      search_seeds: a trial's figures are means over them.
      final_seeds: of the runs that are reported.
    """

    methods: tuple[Method, ...] = METHODS
    batch_sizes: tuple[int | None, ...] = (256, None)
    steps: int = 80
    grid_points: int = 7
    grid_factor: float = 2.0
    grid_extensions: int = 3
    search_seeds: tuple[int, ...] = (0, 1)
    final_seeds: tuple[int, ...] = (10, 11, 12)


SMALL = Budget(
    methods=tuple(METHODS[i] for i in (0, 2, 4)),
    batch_sizes=(256,),
    steps=20,
    grid_points=3,
    grid_factor=4.0,
    grid_extensions=1,
    search_seeds=(0,),
    final_seeds=(10, 11),
)


@dataclasses.dataclass(frozen=True)
class DemoArguments:
    """Compares tuned optimisers on scikit-learn's handwritten digits.

    Attributes:
      small: a few methods and steps, to see that everything runs.
      out: folder for report.md, curves.png and the records, which are replaced.
    """

    small: bool = False
    out: Path = Path("runs/demo")


@dataclasses.dataclass
class Contender:
    """A method at a batch size, with its compiled program and its trials so far."""

    config: RunConfig
    compiled: CompiledProgram
    trials: list[Trial]


def compare(budget: Budget, out: Path, console: rich.console.Console) -> None:
    """Searches, trains, records and reports."""
    dataset = data.load("digits")
    examples = dataset.train.labels.shape[0]
    searches = len(budget.batch_sizes) * len(budget.methods)
    for old in (out / "records").glob("*.jsonl"):
        old.unlink()
    paths: list[Path] = []
    with rich.progress.Progress(
        rich.progress.SpinnerColumn(),
        "{task.description:<44}",
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=searches * (budget.grid_points + 2))
        for batch_size in budget.batch_sizes:
            size = "full batch" if batch_size is None else f"batch {batch_size}"
            contenders = []
            for method in budget.methods:
                epochs = budget.steps * (batch_size or examples) // examples
                config = RunConfig(
                    optimizer=method.optimizer,
                    optimizer_options=dict(method.options),
                    learning_rate=method.centre,
                    batch_size=batch_size,
                    epochs=epochs,
                    epochs_per_report=epochs,
                )
                label = f"{size}: {optimizer_label(config)}"
                progress.update(task, description=f"{label}, compiling")
                compiled = compile_program(make_program(config, dataset), dataset)
                progress.update(task, advance=1, description=label)
                contender = Contender(config, compiled, [])
                for rate in learning_rate_search.log_grid(
                    method.centre, budget.grid_points, budget.grid_factor
                ):
                    _try(contender, rate, dataset, budget.search_seeds)
                    progress.advance(task)
                contenders.append(contender)
            for _ in range(budget.grid_extensions):
                if not any(
                    learning_rate_search.is_on_edge(c.trials) for c in contenders
                ):
                    break
                progress.update(task, description=f"{size}: all grids grow")
                for contender in contenders:
                    for rate in learning_rate_search.extension(
                        contender.trials, budget.grid_factor
                    ):
                        _try(contender, rate, dataset, budget.search_seeds)
            for contender in contenders:
                label = f"{size}: {optimizer_label(contender.config)}, fresh seeds"
                progress.update(task, description=label)
                paths += _record_finals(
                    contender, dataset, budget.final_seeds, out / "records"
                )
                progress.advance(task)
    write_report([read_record(path) for path in paths], out, console)


def _try(
    contender: Contender, rate: float, dataset: data.Dataset, seeds: Sequence[int]
) -> None:
    """Adds a trial; its figures are means over seeds, so NaN if any diverged."""
    program = contender.compiled.program
    outcomes = []
    assert dataset.validation is not None, "the digits have a validation split"
    for seed in seeds:
        state = program.init(seed, rate)
        *_, last = run_epochs(contender.compiled, contender.config, dataset, state)
        train = program.evaluate(last.state, dataset.train)
        validation = program.evaluate(last.state, dataset.validation)
        outcomes.append((train.loss, validation.loss, validation.accuracy))
    means = (
        statistics.fmean(map(float, column)) for column in zip(*outcomes, strict=True)
    )
    contender.trials.append(Trial(rate, *means))


def _record_finals(
    contender: Contender, dataset: data.Dataset, seeds: Sequence[int], folder: Path
) -> list[Path]:
    """Runs the chosen learning rate on fresh seeds and returns the records' paths."""
    best = learning_rate_search.best_trial(contender.trials)
    trials = sorted(contender.trials)
    paths = []
    for seed in seeds:
        config = dataclasses.replace(
            contender.config, learning_rate=best.learning_rate, seed=seed
        )
        path = folder / f"{_file_stem(config)}-seed{seed}.jsonl"
        # A run that diverges is stopped; its record says so and the table counts it.
        with contextlib.suppress(DivergedError):
            record_run(
                path,
                contender.compiled,
                config,
                dataset,
                trials=[trial._asdict() for trial in trials],
                overwrite=True,
            )
        paths.append(path)
    return paths


def _file_stem(config: RunConfig) -> str:
    options = [f"{name}{value:g}" for name, value in config.optimizer_options.items()]
    size = "full" if config.batch_size is None else str(config.batch_size)
    return "-".join([f"batch_{size}", config.optimizer, *options])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(DemoArguments, args=arguments)
    console = rich.console.Console()
    start = time.perf_counter()
    compare(SMALL if given.small else Budget(), given.out, console)
    console.print(f"The demo took {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
