"""The tuning protocol: trials, extension, final runs.

1. Every tuned method runs its first trials, which a sampler has chosen.
2. If the best learning rate of any method is at the edge of those it has tried, every
   method gets further trials, the same number for each of its searches: beyond the edge
   if the best rate is there, else next to the best rate. This is repeated a limited
   number of times.
3. If a sweep refines, every method gets one more round: its best trial at nearby
   learning rates, the same factors for all.
4. The best trial of each method runs again with fresh seeds, and so does every method
   that is not tuned.

A trial is judged by the mean over ``trial_seeds`` of the criterion. Each run leaves a
record, in the folder ``trials`` or ``finals``; later runs depend only on records.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from experiments.config import RunConfig
from experiments.optimizers import Choice, SearchSpace, search_space, text_of
from experiments.optimizers.spaces import ROLES
from experiments.records.files import Line, RunRecord, read_record
from experiments.tuning.runner import PlannedRun
from experiments.tuning.samplers import Point, Search, halton, with_values
from experiments.tuning.trials import (
    EXTENSION,
    Criterion,
    Trial,
    badness,
    best_number,
    best_trial,
    extension,
    is_on_edge,
)

Round: TypeAlias = Sequence[PlannedRun]


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer in a sweep.

    Attributes:
      config: settings of its runs, before the search sets any.
      searches: points of the first trials; empty for a method that is not tuned.
    """

    config: RunConfig
    searches: tuple[Search, ...] = ()

    @property
    def stem(self) -> str:
        """The first part of the names of its records: batch size and optimizer."""
        size = "full" if self.config.batch_size is None else self.config.batch_size
        optimizer = text_of(self.config.optimizer, self.config.optimizer_options)
        return f"batch_{size}-{optimizer}"


def with_choice(config: RunConfig, choice: Choice) -> RunConfig:
    """A configuration with another optimizer."""
    return dataclasses.replace(
        config, optimizer=choice.name, optimizer_options=dict(choice.options)
    )


def sampled_method(
    config: RunConfig, roles: Sequence[str], trials: int, seed: int = 0
) -> Method:
    """A method with a quasi-random search in the space of its optimizer.

    An option that ``config`` sets is not searched; the fixed options of the space are
    set where ``config`` does not.

    Args:
      config: settings of its runs.
      roles: hyperparameters that are searched, by role, out of `ROLES`.
      trials: number of its first trials.
      seed: seed of the quasi-random sequence.

    Raises:
      ValueError: if the optimizer or an option is unknown, or the roles are not
        allowed.
    """
    if "learning_rate" not in roles or set(roles) - set(ROLES):
        raise ValueError(
            f"dimensions={tuple(roles)!r} must contain 'learning_rate', and otherwise "
            f"only {list(ROLES)}"
        )
    if trials < 2:
        raise ValueError(f"trials={trials!r} must be at least 2")
    given = config.optimizer_options
    space = search_space(config.optimizer, given)
    free = {r: d for r, d in space.dimensions.items() if d.name not in given}
    return Method(
        dataclasses.replace(config, optimizer_options={**space.options, **given}),
        halton(SearchSpace(free), roles, trials, seed),
    )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Methods that are compared, and the budget of each.

    Attributes:
      methods: methods that are compared.
      extensions: how often the searches of all methods may be extended.
      factor: ratio of neighboring learning rates beyond an edge.
      refined_by: factors of the best learning rate that are tried last; none by
        default.
      trial_seeds: seeds over which the criterion of a trial is averaged.
      final_seeds: seeds of the runs that are reported.
      criterion: metric by which the best trial is chosen.
    """

    methods: tuple[Method, ...]
    extensions: int = 1
    factor: float = 2.0
    refined_by: tuple[float, ...] = ()
    trial_seeds: tuple[int, ...] = (0,)
    final_seeds: tuple[int, ...] = (10, 11, 12)
    criterion: Criterion = "validation_loss"

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods=() is empty; at least one method is needed")
        stems = [method.stem for method in self.methods]
        if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
            raise ValueError(f"methods has {twice} more than once; once is allowed")
        if self.extensions < 0:
            raise ValueError(f"extensions={self.extensions!r} must be at least 0")
        if not self.factor > 1:
            raise ValueError(f"factor={self.factor!r} must be greater than 1")
        for name in ("trial_seeds", "final_seeds"):
            seeds = getattr(self, name)
            if not seeds or len(set(seeds)) < len(seeds):
                raise ValueError(
                    f"{name}={seeds!r} must be different seeds, one or more"
                )
        if used := sorted(set(self.final_seeds) & set(self.trial_seeds)):
            raise ValueError(
                f"final_seeds={self.final_seeds!r} has {used}, seeds of the trials; "
                "fresh ones are needed"
            )
        for method in self.methods:
            self._check(method)

    def _check(self, method: Method) -> None:
        for search in method.searches:
            if len(search) < 2:
                raise ValueError(
                    f"{len(search)} trials for {method.stem}; at least 2 are needed"
                )
        if self.criterion != "train_loss" and not method.config.validation_examples:
            raise ValueError(
                f"validation_examples=0 leaves nothing for criterion="
                f"{self.criterion!r}; at least 1 is needed"
            )

    @property
    def most_runs(self) -> int:
        """The number of runs if every extension is needed."""
        searches = [search for m in self.methods for search in m.searches]
        further = EXTENSION * self.extensions * len(searches)
        trials = sum(map(len, searches)) + further
        trials += sum(bool(m.searches) for m in self.methods) * len(self.refined_by)
        finals = len(self.methods) * len(self.final_seeds)
        return trials * len(self.trial_seeds) + finals


def rounds(sweep: Sweep, folder: Path) -> Iterator[Round]:
    """The runs of a sweep in rounds.

    The runs of a round are independent of each other; the next round depends on their
    records.

    Args:
      sweep: the sweep to plan.
      folder: place of the records.
    """
    tunings = [_Tuning(sweep, method, folder) for method in sweep.methods]
    yield [run for tuning in tunings for run in tuning.trial_runs()]
    for _ in range(sweep.extensions):
        if not any(tuning.is_on_edge() for tuning in tunings):
            break
        yield [run for tuning in tunings for run in tuning.extend()]
    if sweep.refined_by:
        yield [run for tuning in tunings for run in tuning.refine()]
    yield [run for tuning in tunings for run in tuning.final_runs()]


def trial_paths(method: Method, count: int, folder: Path, seed: int = 0) -> list[Path]:
    """The records of the first trials of a method."""
    return [_trial(method, number, seed, folder) for number in range(count)]


def final_paths(sweep: Sweep, folder: Path) -> list[Path]:
    """The records of all final runs, method by method."""
    return [path for method in sweep.methods for path in _finals(sweep, method, folder)]


def final_records(sweep: Sweep, folder: Path) -> list[RunRecord]:
    """Reads the records of all final runs, method by method."""
    return [read_record(path) for path in final_paths(sweep, folder)]


class _Tuning:
    """A method while it is tuned."""

    def __init__(self, sweep: Sweep, method: Method, folder: Path):
        self._sweep, self._method, self._folder = sweep, method, folder
        self._points: list[Point] = []
        self._outcomes: dict[int, Trial] = {}
        # The numbers of the points of each search.
        self._searches = [self._add(search) for search in method.searches]

    def _add(self, points: Iterable[Point]) -> list[int]:
        first = len(self._points)
        self._points += points
        return list(range(first, len(self._points)))

    def trial_runs(self, first: int = 0) -> list[PlannedRun]:
        """The runs of the points from number ``first``."""
        numbers = range(first, len(self._points))
        return [run for number in numbers for run in self._runs(number)]

    def _runs(self, number: int) -> list[PlannedRun]:
        config = with_values(self._method.config, self._points[number])
        return [
            PlannedRun(
                dataclasses.replace(config, seed=seed),
                _trial(self._method, number, seed, self._folder),
            )
            for seed in self._sweep.trial_seeds
        ]

    def _trials(self, numbers: Iterable[int]) -> list[Trial]:
        for number in set(numbers) - set(self._outcomes):
            self._outcomes[number] = _mean_of(
                [outcome(read_record(run.path)) for run in self._runs(number)]
            )
        return [self._outcomes[number] for number in numbers]

    def _best(self, numbers: Sequence[int]) -> int:
        return numbers[best_number(self._trials(numbers), self._sweep.criterion)]

    def is_on_edge(self) -> bool:
        """Whether the best trial of all searches is at the edge of its search."""
        if not self._searches:
            return False
        criterion = self._sweep.criterion
        best = min(
            self._searches,
            key=lambda s: badness(best_trial(self._trials(s), criterion), criterion),
        )
        return is_on_edge(self._trials(best), criterion)

    def extend(self) -> list[PlannedRun]:
        """Adds points to every search; returns their runs."""
        first = len(self._points)
        for numbers in self._searches:
            rates = extension(
                self._trials(numbers), self._sweep.factor, self._sweep.criterion
            )
            best = self._points[self._best(numbers)]
            numbers += self._add([{**best, "learning_rate": rate} for rate in rates])
        return self.trial_runs(first)

    def refine(self) -> list[PlannedRun]:
        """Adds the best trial at nearby learning rates; returns the runs."""
        if not self._searches:
            return []
        first = len(self._points)
        best = self._points[self._best(range(first))]
        self._add(
            {**best, "learning_rate": best["learning_rate"] * factor}
            for factor in self._sweep.refined_by
        )
        return self.trial_runs(first)

    def final_runs(self) -> list[PlannedRun]:
        """The best trial, or the method that is not tuned, with fresh seeds."""
        config = self._method.config
        numbers = range(len(self._points))
        lines: list[Line] = []
        if self._points:
            config = with_values(config, self._points[self._best(numbers)])
            trials = self._trials(numbers)
            lines = [
                {**point, **trial._asdict()}
                for point, trial in zip(self._points, trials, strict=True)
            ]
        paths = _finals(self._sweep, self._method, self._folder)
        return [
            PlannedRun(dataclasses.replace(config, seed=seed), path, lines)
            for seed, path in zip(self._sweep.final_seeds, paths, strict=True)
        ]


def outcome(record: RunRecord) -> Trial:
    """The final metrics of a recorded run."""
    names = ("train_loss", "validation_loss", "validation_accuracy")
    values = [(record.summary or {}).get(name) for name in names]
    return Trial(
        record.config.learning_rate,
        *(math.nan if value is None else value for value in values),
    )


def _mean_of(trials: Sequence[Trial]) -> Trial:
    rates, *columns = zip(*trials, strict=True)
    return Trial(rates[0], *map(statistics.fmean, columns))


def _trial(method: Method, number: int, seed: int, folder: Path) -> Path:
    name = f"{method.stem}-trial{number:02}-seed{seed}.jsonl"
    return folder / "trials" / name


def _finals(sweep: Sweep, method: Method, folder: Path) -> list[Path]:
    return [
        folder / "finals" / f"{method.stem}-seed{seed}.jsonl"
        for seed in sweep.final_seeds
    ]
