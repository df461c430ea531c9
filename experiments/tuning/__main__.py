"""``python -m experiments.tuning``: tuned optimizers, the same budget for each.

Every optimizer gets the same number of quasi-random trials in its search space, at the
same places of the unit cube; `experiments.tuning.sweep` describes what follows. Every
run leaves a record in the folder ``trials`` or ``finals``, and rerunning the command
resumes the sweep. Options of an optimizer follow its name, and are then not searched.
For example::

    python -m experiments.tuning --optimizers nesterov nlcg,preconditioner=rms
    python -m experiments.report runs/sweep/finals
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import rich.console
import tyro

from experiments import data
from experiments.choices import with_note
from experiments.config import RunConfig
from experiments.errors import ending_with_a_message
from experiments.optimizers import OPTIMIZERS, choice_of
from experiments.report.write import write_report
from experiments.tuning.runner import Runner
from experiments.tuning.study import run_study, sweep_stage
from experiments.tuning.sweep import (
    Sweep,
    final_records,
    sampled_method,
    with_choice,
)
from experiments.tuning.trials import Criterion

MODULE = "experiments.tuning"

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
class SweepArguments:
    """Tunes optimizers with the same budget and runs the best trials on fresh seeds.

    Attributes:
      config: settings of all runs; the optimizer, its options and what is searched are
        set by the sweep; the seed is that of the trials.
      optimizers: optimizers that are compared, each as ``name`` or
        ``name,option=value,option=value``.
      dimensions: roles of the hyperparameters that are searched; an optimizer without
        one of them is searched in the others.
      trials: first trials of each optimizer.
      extensions: how often all optimizers may get further trials.
      sampler_seed: seed of the quasi-random points.
      final_seeds: seeds of the runs that are reported.
      criterion: metric by which the best trial is chosen.
      together: number of trials of an optimizer that share a compiled call; no effect
        if the warm-up is searched, because it is part of the program.
      data_dir: folder of all prepared data sets.
      out: folder of the records, the tables and the curves.
    """

    config: RunConfig = dataclasses.field(
        default_factory=lambda: RunConfig(schedule="cosine", warmup_epochs=2.0)
    )
    optimizers: Annotated[
        tuple[str, ...], with_note(lambda: f"names: {', '.join(OPTIMIZERS)}")
    ] = STANDARD
    dimensions: tuple[Role, ...] = ("learning_rate", "memory", "decay", "warmup")
    trials: int = 8
    extensions: int = Sweep.extensions
    sampler_seed: int = 0
    final_seeds: tuple[int, ...] = Sweep.final_seeds
    criterion: Criterion = Sweep.criterion
    together: int = 1
    data_dir: Path = data.DATA_DIR
    out: Path = Path("runs/sweep")


def sweep_of(given: SweepArguments) -> Sweep:
    """The sweep that the arguments describe.

    Raises:
      ValueError: if an argument is out of its range or has an unknown name.
    """
    for name in ("optimizer", "optimizer_options"):
        value = getattr(given.config, name)
        if value != getattr(RunConfig(), name):
            raise ValueError(f"config.{name}={value!r} must be given by --optimizers")
    if given.sampler_seed < 0:
        raise ValueError(f"sampler_seed={given.sampler_seed!r} must be at least 0")
    methods = []
    for text in given.optimizers:
        config = with_choice(given.config, choice_of(text))
        methods.append(
            sampled_method(config, given.dimensions, given.trials, given.sampler_seed)
        )
    return Sweep(
        tuple(methods),
        extensions=given.extensions,
        trial_seeds=(given.config.seed,),
        final_seeds=given.final_seeds,
        criterion=given.criterion,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(SweepArguments, prog=f"python -m {MODULE}", args=arguments)
    console = rich.console.Console()
    with ending_with_a_message(MODULE, arguments):
        sweep = sweep_of(given)
        stages = [sweep_stage(sweep, given.out)]
        run_study(stages, Runner(given.data_dir), console, together=given.together)
        write_report(final_records(sweep, given.out), given.out, console)


if __name__ == "__main__":
    main()
