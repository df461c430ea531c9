"""``python -m experiments.cifar100_gpu``: CIFAR-100 with ResNet-32 on one GPU.

Everything of the paper's large-batch table that one GPU can do, in calls of a limited
length: each call takes up where the last one stopped, cell by cell. A cell that has a
finished record is skipped, one that was killed is repeated. In this order:

1. checks: loss and gradient against the CPU's, images per second;
2. the paper's recipe at batch 16384 (610 steps), for SGD, momentum, RMSProp, NLCG;
3. a search over learning rates at 16384, equal for all methods, on 5,000 training
   images held out, and the best rates with fresh seeds on all of them;
4. the paper's recipe at 8192 and 2048.

Prepare the data first. On a machine without tensorflow-datasets, with the files in a
directory of your choice::

    python -m experiments.prepare cifar100 --source DIRECTORY --form arrays
    python -m experiments.cifar100_gpu --seconds 540     # repeat until all is done
    python -m experiments.report runs/cifar100_gpu/paper

``--small`` goes through all of it with a narrow ResNet-8, 2,000 images and two epochs.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import rich.console
import tyro

from experiments import data, learning_rate_search
from experiments.config import RunConfig
from experiments.device_checks import check_parity, images_per_second
from experiments.learning_rate_search import Trial
from experiments.records import read_record
from experiments.runner import PlannedRun, Runner, finished

# The published examples are .8 at batch 2048 and 1.6 at 4096; the figure at 16384, by
# the same rule, is our inference.
PAPER_RATE_PER_IMAGE = 0.1 / 256
PAPER_OPTIMIZERS = ("sgd", "heavy_ball", "rmsprop", "paper_nlcg_fr")
GRID_FACTOR = 2.0


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimiser of the search and where its grid of learning rates is centred."""

    optimizer: str
    centre: float
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)


SMOOTHED = {"beta_smoothing": 0.9}
METHODS = (
    Method("nlcg_pr+_rms", 0.01, SMOOTHED),
    Method("nlcg_pr+_orthogonal", 0.02, SMOOTHED),
    Method("nesterov", 1.6),
    Method("heavy_ball", 1.6),
    Method("lars", 6.4, {"weight_decay": 0.0}),
    Method("adam", 0.01),
    Method("lamb", 0.02, {"weight_decay": 0.0}),
    Method("muon", 0.02),
)


@dataclasses.dataclass(frozen=True)
class Study:
    """How large everything is.

    Attributes:
      model: of all runs.
      compute_dtype: of all runs.
      epochs: of all runs.
      epochs_per_report: after which a run is evaluated.
      steps_per_call: in one compiled call, None for all up to a report.
      batch_sizes: the first one also has the search.
      micro_batch_size: images that batch normalisation sees together.
      train_examples: None for all.
      validation_examples: held out in the search.
      methods: of the search.
      grid_points: learning rates of each method at first.
      grid_extensions: how often the grids may grow.
      seeds: of the paper's recipe.
      final_seeds: of the best rates.
    """

    model: str = "resnet32"
    compute_dtype: str = "bfloat16"
    epochs: int = 200
    epochs_per_report: int = 20
    steps_per_call: int | None = None
    batch_sizes: tuple[int, ...] = (16384, 8192, 2048)
    micro_batch_size: int = 1024
    train_examples: int | None = None
    validation_examples: int = 5000
    methods: tuple[Method, ...] = METHODS
    grid_points: int = 4
    grid_extensions: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    final_seeds: tuple[int, ...] = (10, 11, 12)


SMALL = Study(
    model="resnet8_narrow",
    compute_dtype="float32",
    epochs=2,
    epochs_per_report=1,
    steps_per_call=1,  # for CPUs
    batch_sizes=(512, 256),
    micro_batch_size=256,
    train_examples=2000,
    validation_examples=500,
    methods=METHODS[:3],
    grid_points=2,
    seeds=(0,),
    final_seeds=(10,),
)


@dataclasses.dataclass(frozen=True)
class GpuArguments:
    """Trains CIFAR-100 on one GPU, for a limited time; repeat to go on.

    Attributes:
      seconds: no cell is started that would, by the longest so far, end later.
      data_dir: folder of all prepared data sets.
      out: folder of the records.
      small: everything at small scale, to see that it runs.
    """

    seconds: float = 540.0
    data_dir: Path = data.DATA_DIR
    out: Path = Path("runs/cifar100_gpu")
    small: bool = False


def cells(study: Study, out: Path) -> Iterator[PlannedRun]:
    """All cells in their order; later ones depend on the records of earlier ones."""
    first, *others = study.batch_sizes
    yield from _paper_row(study, first, out / "paper")
    yield from _search(study, first, out)
    for batch_size in others:
        yield from _paper_row(study, batch_size, out / "paper")


def run_study(arguments: GpuArguments, console: rich.console.Console) -> bool:
    """Goes on with the study; returns whether it is complete."""
    end = time.monotonic() + arguments.seconds
    study = SMALL if arguments.small else Study()
    runner = Runner(arguments.data_dir, console)
    if not (arguments.out / "checks.json").exists():
        _check(study, runner, arguments.out, console)
    for cell in cells(study, arguments.out):
        if finished(cell) is not None:
            continue
        if time.monotonic() + runner.longest > end:
            console.print(f"stopped before {cell.path.stem}; call again to go on")
            return False
        runner.run(cell)
    console.print("the study is complete")
    return True


def _base(study: Study, batch_size: int) -> RunConfig:
    return RunConfig(
        dataset="cifar100",
        model=study.model,
        batch_size=batch_size,
        micro_batches=max(1, batch_size // study.micro_batch_size),
        epochs=study.epochs,
        epochs_per_report=study.epochs_per_report,
        steps_per_call=study.steps_per_call,
        l2=2e-4,
        ema_decay=0.9999,
        augmentation="crop_flip",
        compute_dtype=study.compute_dtype,
        train_examples=study.train_examples,
        validation_examples=0,
    )


def _cell(folder: Path, config: RunConfig) -> PlannedRun:
    options = [f"{name}{value:g}" for name, value in config.optimizer_options.items()]
    parts = [
        f"batch{config.batch_size}",
        config.optimizer,
        *options,
        f"lr{config.learning_rate:.5g}",
        f"seed{config.seed}",
    ]
    return PlannedRun(config, folder / f"{'-'.join(parts)}.jsonl")


def _paper_row(study: Study, batch_size: int, folder: Path) -> Iterator[PlannedRun]:
    for seed in study.seeds:
        for optimizer in PAPER_OPTIMIZERS:
            config = dataclasses.replace(
                _base(study, batch_size),
                optimizer=optimizer,
                learning_rate=PAPER_RATE_PER_IMAGE * batch_size,
                schedule="paper",
                seed=seed,
            )
            yield _cell(folder, config)


def _search(study: Study, batch_size: int, out: Path) -> Iterator[PlannedRun]:
    def config_of(method: Method, rate: float) -> RunConfig:
        return dataclasses.replace(
            _base(study, batch_size),
            optimizer=method.optimizer,
            optimizer_options=dict(method.options),
            learning_rate=rate,
            schedule="cosine",
            warmup_epochs=study.epochs / 8,
        )

    def trial_cell(method: Method, rate: float) -> PlannedRun:
        config = dataclasses.replace(
            config_of(method, rate), validation_examples=study.validation_examples
        )
        return _cell(out / "search", config)

    def trials(number: int) -> list[Trial]:
        method = study.methods[number]
        return [_trial(trial_cell(method, rate)) for rate in rates[number]]

    numbers = range(len(study.methods))
    rates = [
        learning_rate_search.log_grid(method.centre, study.grid_points, GRID_FACTOR)
        for method in study.methods
    ]
    for method, grid in zip(study.methods, rates, strict=True):
        yield from (trial_cell(method, rate) for rate in grid)
    for _ in range(study.grid_extensions):
        if not any(learning_rate_search.is_on_edge(trials(n)) for n in numbers):
            break
        for number, method in enumerate(study.methods):
            more = learning_rate_search.extension(trials(number), GRID_FACTOR)
            yield from (trial_cell(method, rate) for rate in more)
            rates[number] += more
    for seed in study.final_seeds:
        for number, method in enumerate(study.methods):
            best = learning_rate_search.best_trial(trials(number))
            config = config_of(method, best.learning_rate)
            yield _cell(out / "tuned", dataclasses.replace(config, seed=seed))


def _trial(cell: PlannedRun) -> Trial:
    record = read_record(cell.path)
    names = ("train_loss", "validation_loss", "validation_accuracy")
    figures = [(record.summary or {}).get(name) for name in names]
    return Trial(
        cell.config.learning_rate,
        *(float("nan") if figure is None else figure for figure in figures),
    )


def _check(
    study: Study, runner: Runner, out: Path, console: rich.console.Console
) -> None:
    config = dataclasses.replace(
        _base(study, study.batch_sizes[0]), optimizer="paper_nlcg_fr"
    )
    dataset = runner.dataset(config)
    dtypes = dict.fromkeys(("float32", study.compute_dtype))
    parities = [check_parity(config, dataset, dtype)._asdict() for dtype in dtypes]
    speed = images_per_second(config, dataset)
    out.mkdir(parents=True, exist_ok=True)
    checks = {"parity": parities, "images_per_second": speed}
    (out / "checks.json").write_text(json.dumps(checks, indent=2), encoding="utf-8")
    for parity in parities:
        console.print(
            f"{parity['platform']} {parity['compute_dtype']} against the CPU: loss off "
            f"by {parity['loss_difference']:.1e}, gradient by "
            f"{parity['gradient_difference']:.1e}"
        )
    console.print(f"{speed:.0f} images/s with paper_nlcg_fr")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    try:
        run_study(tyro.cli(GpuArguments, args=arguments), rich.console.Console())
    except (ValueError, data.NotPreparedError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
