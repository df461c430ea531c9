"""``python -m experiments.run``: one run, from the command line to its record.

For example ``python -m experiments.run --config.optimizer adam
--config.learning-rate 0.01 --record runs/adam.jsonl``.

With ``--checkpoint-dir runs/adam``, rerunning the command resumes from the newest
complete checkpoint, and the run ends with the same weights as without the interruption.

Text files in ``DIRECTORY/text/*.txt`` are learned by ``python -m experiments.run
--config.dataset text --config.model transformer --data-dir DIRECTORY``.

For a run of several processes, start the same command in each, with the same
``--processes.coordinator`` and ``--processes.count`` and its own
``--processes.index``; on a TPU slice ``--processes.auto`` is enough.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import rich.console
import rich.progress
import tyro

from experiments import data
from experiments.config import RunConfig
from experiments.errors import UserError, ending_with_a_message
from experiments.records.files import Line
from experiments.records.run import check_record, record_run
from experiments.records.tensorboard import TensorBoard
from experiments.training import (
    Report,
    compile_program,
    make_program,
    meshes,
)
from experiments.training.checkpoints import SECONDS, Checkpoints
from experiments.training.processes import (
    ProcessOptions,
    connect,
    is_first,
    wait_for_all,
)

MODULE = "experiments.run"
# Beginnings of errors that a lost process does not cause.
OF_THIS_PROCESS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


@dataclasses.dataclass(frozen=True)
class RunArguments:
    """Trains one network and leaves a record.

    Attributes:
      config: settings of the run.
      record: the JSON-lines file to write; it must not exist unless the run is resumed
        from checkpoints.
      data_dir: folder of all prepared data sets.
      checkpoint_dir: folder, or address in a bucket, of the checkpoints of this run.
      checkpoint_every: number of reports per checkpoint.
      checkpoint_seconds: time after which a checkpoint is saved within a report, if the
        run has one process.
      keep: number of newest checkpoints to keep.
      tensorboard_dir: folder of the metrics of this run for TensorBoard.
      processes: settings of a run with several processes.
    """

    config: RunConfig = dataclasses.field(default_factory=RunConfig)
    record: Path = Path("runs/run.jsonl")
    data_dir: Path = data.DATA_DIR
    checkpoint_dir: str | None = None
    checkpoint_every: int = 1
    checkpoint_seconds: float = SECONDS
    keep: int = 3
    tensorboard_dir: Path | None = None
    processes: ProcessOptions = dataclasses.field(default_factory=ProcessOptions)


def run(arguments: RunArguments, console: rich.console.Console) -> Line:
    """Trains with a progress bar and prints the summary, which is returned.

    Raises:
      FileExistsError: if the record exists and no checkpoints are asked for.
      ValueError: if the record is of another configuration, or the configuration does
        not fit the data.
    """
    config = arguments.config
    config.check_names()
    if is_first():
        check_record(arguments.record, config, resume=bool(arguments.checkpoint_dir))
    dataset = data.load_or_open(config.dataset, config.data_options(arguments.data_dir))
    if isinstance(dataset, data.Dataset):
        splits = (dataset.train, dataset.validation, dataset.test)
        dataset = data.Dataset(dataset.num_classes, *meshes.on_all_devices(splits))
    program = make_program(config, dataset)
    with console.status("compiling"):
        compiled = compile_program(program, dataset)
        wait_for_all("compiled")
    with (
        _checkpoints(arguments) as checkpoints,
        _tensorboard(arguments) as tensorboard,
        rich.progress.Progress(
            "{task.description}",
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
        ) as progress,
    ):
        task = progress.add_task("epochs", total=config.epochs)

        def on_report(report: Report, evaluation: Line) -> None:
            progress.update(
                task,
                completed=report.number * config.epochs_per_report,
                description=_progress_of(evaluation),
            )
            if tensorboard is not None:
                tensorboard.write(report, evaluation)

        summary = record_run(
            arguments.record,
            compiled,
            config,
            dataset,
            on_report=on_report,
            checkpoints=checkpoints,
        )
    if not is_first():
        return summary
    console.print(
        f"training loss {summary['train_loss']:.4f}, test accuracy "
        f"{summary['test_accuracy']:.1%}, {summary['gradient_equivalents']:.0f} "
        f"gradient-equivalents, {summary['seconds']:.1f} s, "
        f"{summary['images_per_second']:.0f} images/s; record in "
        f"{arguments.record}"
    )
    return summary


def _checkpoints(
    arguments: RunArguments,
) -> contextlib.AbstractContextManager[Checkpoints | None]:
    if arguments.checkpoint_dir is None:
        return contextlib.nullcontext()
    return Checkpoints(
        arguments.checkpoint_dir,
        arguments.config,
        every=arguments.checkpoint_every,
        keep=arguments.keep,
        seconds=arguments.checkpoint_seconds,
    )


def _tensorboard(
    arguments: RunArguments,
) -> contextlib.AbstractContextManager[TensorBoard | None]:
    if arguments.tensorboard_dir is None or not is_first():
        return contextlib.nullcontext()
    return TensorBoard(arguments.tensorboard_dir)


def _progress_of(evaluation: Line) -> str:
    split = "validation" if "validation_accuracy" in evaluation else "train"
    accuracy = evaluation[f"{split}_accuracy"]
    return (
        f"loss {evaluation['train_loss']:.4f}, {split} accuracy {accuracy:.1%}, "
        f"{evaluation['images_per_second']:.0f} images/s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(RunArguments, prog=f"python -m {MODULE}", args=arguments)
    execute(given, arguments)


def execute(
    given: RunArguments,
    arguments: Sequence[str] | None = None,
    module: str = MODULE,
) -> None:
    """Does what ``main`` does once the command line is parsed."""
    # Orbax logs whole traces of what a CheckpointError says in a line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    again = "resume with"
    if given.checkpoint_dir is None:
        again = (
            f"without --checkpoint-dir the run cannot be resumed; delete {given.record}"
            " and start again with"
        )
    with ending_with_a_message(module, arguments, again=again), _lost_processes():
        connect(given.processes)
        run(given, rich.console.Console(quiet=not is_first()))


@contextlib.contextmanager
def _lost_processes() -> Iterator[None]:
    """Raises a `UserError` if other processes of the run are lost."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or str(error).startswith(OF_THIS_PROCESS):
            raise
        raise UserError(
            f"process {jax.process_index()} of {jax.process_count()} lost the others; "
            "start all of them again; with --checkpoint-dir the run resumes from its "
            f"newest checkpoint ({str(error).partition(chr(10))[0]})"
        ) from error


if __name__ == "__main__":
    main()
