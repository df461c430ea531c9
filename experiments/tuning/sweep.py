"""``python -m experiments.tuning.sweep``: tuned optimisers, the same budget for each.

Every optimiser gets the same number of quasi-random trials in its search space, at the
same places of the unit cube. The best by a figure of the validation split runs again
with fresh seeds. If the learning rate of anybody's best trial is the least or greatest
that was tried, everybody gets further trials: beyond the edge there, beside the best
elsewhere.

Each trial and each final run leaves a record in ``trials`` and ``finals``; the command
with the same settings goes on where it was stopped. For example::

    python -m experiments.tuning.sweep --optimizers nesterov nlcg,preconditioner=rms
    python -m experiments.report runs/sweep/finals
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import rich.console
import scipy.stats
import tyro

from experiments import data
from experiments.config import RunConfig
from experiments.errors import ending_with_a_message
from experiments.optimizers import choice_of, search_space, text_of
from experiments.optimizers.spaces import ROLES
from experiments.records.files import read_record, read_records
from experiments.report.__main__ import write_report
from experiments.training import program_of
from experiments.tuning import learning_rate_search
from experiments.tuning.learning_rate_search import Criterion, Trial
from experiments.tuning.runner import PlannedRun, Runner, finished
from experiments.tuning.spaces import with_values

EDGE_FACTOR = 2.0  # between learning rates beyond an edge
STANDARD = (
    "sgd",
    "heavy_ball",
    "nesterov",
    "rmsprop",
    "adamw",
    "lars",
    "lamb",
    "muon",
    "shampoo",
    "paper_nlcg",
    "nlcg,preconditioner=rms",
    "nlcg,preconditioner=orthogonal",
)

Role = Literal["learning_rate", "memory", "decay", "warmup"]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is compared, and with which budget.

    Attributes:
      configs: of every optimiser before the search sets anything; the seed is that of
        the trials.
      dimensions: roles of the hyperparameters that are searched; an optimiser without
        one of them is searched in the others.
      trials: of each optimiser at first.
      extensions: how often everybody may get further trials.
      sampler_seed: of the quasi-random points.
      final_seeds: of the runs that are reported.
      criterion: by which the best trial is chosen.
    """

    configs: tuple[RunConfig, ...]
    dimensions: tuple[Role, ...] = ("learning_rate", "memory", "decay", "warmup")
    trials: int = 8
    extensions: int = 1
    sampler_seed: int = 0
    final_seeds: tuple[int, ...] = (10, 11, 12)
    criterion: Criterion = "validation_loss"

    def __post_init__(self) -> None:
        if not self.configs:
            raise ValueError("configs=() is empty; at least one optimiser is needed")
        for config in self.configs:
            search_space(config.optimizer, config.optimizer_options)
            if config.seed in self.final_seeds:
                raise ValueError(
                    f"final_seeds={self.final_seeds!r} holds the seed of the trials, "
                    f"{config.seed}; fresh ones are needed"
                )
            if not config.validation_examples:
                raise ValueError(
                    f"validation_examples={config.validation_examples!r} leaves "
                    "nothing to choose by; at least 1 is needed"
                )
        for name, value, least in (
            ("trials", self.trials, 2),
            ("extensions", self.extensions, 0),
            ("sampler_seed", self.sampler_seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value!r} must be at least {least}")
        if "learning_rate" not in self.dimensions or set(self.dimensions) - set(ROLES):
            raise ValueError(
                f"dimensions={self.dimensions!r} must hold 'learning_rate', and else "
                f"only roles out of {list(ROLES)}"
            )


def quasi_random_points(
    config: RunConfig, dimensions: Sequence[str], count: int, seed: int
) -> list[dict[str, float]]:
    """The values of each trial: a scrambled Halton sequence in the search space.

    More points begin with the same ones, and all optimisers get the same places, a
    column of the unit cube for each role.
    """
    space = search_space(config.optimizer, config.optimizer_options).dimensions
    places = scipy.stats.qmc.Halton(len(ROLES), scramble=True, seed=seed).random(count)
    return [
        {
            space[role].name: float(space[role].at(place))
            for role, place in zip(ROLES, row, strict=True)
            if role in dimensions and role in space
        }
        for row in places
    ]


def planned_runs(
    sweep: Sweep, out: Path, before_reading: Callable[[], None] = lambda: None
) -> Iterator[PlannedRun]:
    """All runs in their order; later ones depend on the records of earlier ones.

    Args:
      sweep: what is run.
      out: folder of the records.
      before_reading: called before the records of all runs so far are read.
    """
    points = [
        quasi_random_points(config, sweep.dimensions, sweep.trials, sweep.sampler_seed)
        for config in sweep.configs
    ]
    numbers = range(len(sweep.configs))

    def trial_run(number: int, trial: int) -> PlannedRun:
        config = with_values(_with_fixed_options(sweep, number), points[number][trial])
        name = f"{_stem(sweep.configs[number])}-trial{trial:02}.jsonl"
        return PlannedRun(config, out / "trials" / name)

    def outcomes(number: int) -> list[Trial]:
        before_reading()
        runs = [trial_run(number, trial) for trial in range(len(points[number]))]
        return [_outcome(run) for run in runs]

    for number in numbers:
        yield from (trial_run(number, trial) for trial in range(sweep.trials))
    for _ in range(sweep.extensions):
        found = [outcomes(number) for number in numbers]
        if not any(
            learning_rate_search.is_on_edge(trials, sweep.criterion) for trials in found
        ):
            break
        for number, trials in zip(numbers, found, strict=True):
            best = learning_rate_search.best_trial(trials, sweep.criterion)
            rates = learning_rate_search.extension(trials, EDGE_FACTOR, sweep.criterion)
            first = len(trials)
            values = points[number][trials.index(best)]
            points[number] += [{**values, "learning_rate": rate} for rate in rates]
            yield from (trial_run(number, first + k) for k in range(len(rates)))
    for number in numbers:
        trials = outcomes(number)
        best = learning_rate_search.best_trial(trials, sweep.criterion)
        chosen = trial_run(number, trials.index(best)).config
        lines = [
            {**values, **trial._asdict()}
            for values, trial in zip(points[number], trials, strict=True)
        ]
        for seed in sweep.final_seeds:
            config = dataclasses.replace(chosen, seed=seed)
            name = f"{_stem(sweep.configs[number])}-seed{seed}.jsonl"
            yield PlannedRun(config, out / "finals" / name, lines)


def run_sweep(sweep: Sweep, out: Path, runner: Runner, together: int = 1) -> None:
    """Goes through all runs, or through those that are left after a stop.

    Args:
      sweep: what is run.
      out: folder of the records.
      runner: that trains.
      together: runs of one program that share a compiled call.

    Raises:
      ValueError: if a record in ``out`` is of another sweep, or a number is out of its
        range.
    """
    if together < 1:
        raise ValueError(f"together={together!r} must be at least 1")
    waiting: list[PlannedRun] = []

    def run_waiting() -> None:
        if len(waiting) == 1:
            runner.run(waiting[0])
        elif waiting:
            runner.run_together(waiting)
        waiting.clear()

    for planned in planned_runs(sweep, out, before_reading=run_waiting):
        if finished(planned) is not None:
            continue
        if waiting and program_of(waiting[0].config) != program_of(planned.config):
            run_waiting()
        waiting.append(planned)
        if len(waiting) == together:
            run_waiting()
    run_waiting()


def _with_fixed_options(sweep: Sweep, number: int) -> RunConfig:
    config = sweep.configs[number]
    fixed = search_space(config.optimizer, config.optimizer_options).options
    return dataclasses.replace(
        config, optimizer_options={**fixed, **config.optimizer_options}
    )


def _stem(config: RunConfig) -> str:
    size = "full" if config.batch_size is None else str(config.batch_size)
    return f"batch_{size}-{text_of(config.optimizer, config.optimizer_options)}"


def _outcome(planned: PlannedRun) -> Trial:
    record = read_record(planned.path)
    names = ("train_loss", "validation_loss", "validation_accuracy")
    figures = [(record.summary or {}).get(name) for name in names]
    return Trial(
        planned.config.learning_rate,
        *(math.nan if figure is None else figure for figure in figures),
    )


@dataclasses.dataclass(frozen=True)
class SweepArguments:
    """Tunes optimisers with the same budget and runs the best ones on fresh seeds.

    Attributes:
      config: of all runs; the optimiser, its options and what is searched are set by
        the sweep.
      optimizers: that are compared, out of `experiments.tuning.spaces`.
      dimensions: roles of the hyperparameters that are searched.
      trials: of each optimiser at first.
      extensions: how often everybody may get further trials.
      sampler_seed: of the quasi-random points.
      final_seeds: of the runs that are reported.
      criterion: by which the best trial is chosen.
      together: trials of an optimiser that share a compiled call; without effect where
        the warm-up is searched, because it is a part of the program.
      data_dir: folder of all prepared data sets.
      out: folder of the records, the tables and the curves.
    """

    config: RunConfig = dataclasses.field(
        default_factory=lambda: RunConfig(schedule="cosine", warmup_epochs=2.0)
    )
    optimizers: tuple[str, ...] = STANDARD
    dimensions: tuple[Role, ...] = Sweep.dimensions
    trials: int = Sweep.trials
    extensions: int = Sweep.extensions
    sampler_seed: int = Sweep.sampler_seed
    final_seeds: tuple[int, ...] = Sweep.final_seeds
    criterion: Criterion = Sweep.criterion
    together: int = 1
    data_dir: Path = data.DATA_DIR
    out: Path = Path("runs/sweep")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(SweepArguments, args=arguments)
    console = rich.console.Console()
    settings: dict[str, Any] = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(Sweep)
        if field.name != "configs"
    }
    with ending_with_a_message("experiments.tuning.sweep", arguments):
        configs = tuple(
            dataclasses.replace(given.config, optimizer=name, optimizer_options=options)
            for name, options in map(choice_of, given.optimizers)
        )
        sweep = Sweep(configs, **settings)
        runner = Runner(given.data_dir, console)
        run_sweep(sweep, given.out, runner, given.together)
        write_report(read_records(given.out / "finals"), given.out, console)


if __name__ == "__main__":
    main()
