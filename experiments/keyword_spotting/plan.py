"""The study: its jobs, their records, and the order in which they run."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments import optimizers
from experiments.config import RunConfig, changes
from experiments.data.clips import Clips
from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.phases import Phases, Variant, mean_rejects
from experiments.keyword_spotting.prepare import prepare, write
from experiments.optimizers import choice_of
from experiments.records.files import Line, header
from experiments.records.json_file import write_json
from experiments.training import DivergedError
from experiments.tuning.jobs import Job, PlannedJob
from experiments.tuning.study import Stage, jobs_stage

# Optimizers and the middle of their learning rates; None for nothing to tune.
BASELINES: dict[str, float | None] = {
    "adam": 3e-3,
    "nesterov": 0.018,
    "muon": 0.09,
    "lbfgs": 0.01 / 3,
}
NLCG: dict[str, float | None] = {
    "nlcg": 0.03,
    "large_batch_nlcg": 0.06,
    "tuning_free_nlcg": None,
}
MINIMIZE = "minimize"
# Fields of a run's configuration that are used here.
SETTINGS = (
    "optimizer",
    "optimizer_options",
    "learning_rate",
    "schedule",
    "batch_size",
    "l2",
    "epochs",
    "epochs_per_report",
)
VARIANTS: dict[str, Variant] = {
    "no hard negatives": Variant(hard_negatives=False),
    "no IOU sampling": Variant(iou_sampling=False),
    "no mined negatives": Variant(mined=False),
    "soft maximum": Variant(temperature=0.5),
    "no priors": Variant(with_priors=False),
    "from random weights": Variant(from_random=True),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is run.

    Attributes:
      config: settings of the data, the network and the windows.
      out: folder of the records.
      methods: optimizers with the middle of their learning rates.
      variants: ablations by name.
      ablated: the optimizer of the ablations, at the rate that the search finds.
      budget: gradient-equivalents of each run, of gradients on all windows.
      reports: evaluations of each run on validation speakers.
      factor: ratio of neighboring learning rates; three are tried.
      seeds: seeds of all that is reported; the first is also that of the search.
    """

    config: KeywordConfig
    out: Path
    methods: tuple[str, ...] = (*BASELINES, *NLCG, MINIMIZE)
    variants: tuple[str, ...] = tuple(VARIANTS)
    ablated: str = "large_batch_nlcg"
    budget: int = 36
    reports: int = 12
    factor: float = 3.0
    seeds: tuple[int, ...] = (0, 1, 2)

    def prepared(self) -> Path:
        return self.out / "prepared.npz"

    def aligned(self, seed: int) -> Path:
        return self.out / "cross_entropy" / f"seed{seed}.npz"

    def cross_entropy(self, kind: str, seed: int) -> Path:
        return self.out / "finals" / f"{kind}-seed{seed}.json"

    def rates(self, method: str) -> list[float]:
        """The learning rates that are tried; one where none is tuned."""
        center = {**BASELINES, **NLCG}[method]
        if center is None:
            return [1.0]
        return [center / self.factor, center, center * self.factor]

    def trial(self, method: str, rate: float) -> Path:
        return self.out / "search" / f"{method}-{rate:.3g}.json"

    def final(self, method: str, seed: int) -> Path:
        return self.out / "finals" / f"{method}-seed{seed}.json"

    def ablation(self, name: str, seed: int) -> Path:
        stem = name.replace(" ", "_")
        return self.out / "ablations" / f"{stem}-seed{seed}.json"

    def run_config(self, method: str, rate: float, seed: int) -> RunConfig:
        """Steps that cost the budget, in equal parts between reports."""
        name, options = choice_of(method)
        cost = optimizers.build(name, rate, options).gradient_equivalents
        each = max(1, int(self.budget / cost / self.reports))
        if method == "tuning_free_nlcg":
            options = {**options, "num_steps": each * self.reports}
        return RunConfig(
            optimizer=name,
            optimizer_options=options,
            learning_rate=rate,
            schedule="constant" if self.rates(method) == [1.0] else "linear",
            batch_size=None,
            l2=self.config.l2,
            epochs=each * self.reports,
            epochs_per_report=each,
            seed=seed,
        )

    def best_rate(self, method: str) -> float:
        """The rate whose trial rejects the fewest keywords of validation speakers."""
        rates = self.rates(method)
        if len(rates) == 1:
            return rates[0]

        def rejected(rate: float) -> float:
            line = read_line(self.trial(method, rate))
            return 2.0 if "stopped" in line else mean_rejects(line)

        return min(rates, key=rejected)


def stages(plan: Plan, read: Callable[[], Clips]) -> list[Stage]:
    """All of the study, in its order; ``read`` gives its clips."""
    work = _Work(plan, Phases(plan.config, plan.prepared()), read)
    tuned = [m for m in plan.methods if m != MINIMIZE]
    trials = [
        (m, rate) for m in tuned if len(plan.rates(m)) > 1 for rate in plan.rates(m)
    ]

    def finals() -> Iterator[Sequence[Job]]:
        yield [
            PlannedJob(plan.final(m, seed), functools.partial(work.final, m, seed))
            for m in plan.methods
            for seed in plan.seeds
        ]

    def ablations() -> Iterator[Sequence[Job]]:
        yield [
            PlannedJob(plan.ablation(v, seed), functools.partial(work.ablate, v, seed))
            for v in plan.variants
            for seed in plan.seeds
        ]

    return [
        jobs_stage([PlannedJob(plan.prepared(), work.prepare)]),
        jobs_stage(
            [
                PlannedJob(plan.aligned(seed), functools.partial(work.align, seed))
                for seed in plan.seeds
            ]
        ),
        jobs_stage(
            [
                PlannedJob(
                    plan.cross_entropy("cross_entropy", seed),
                    functools.partial(work.evaluate, seed),
                )
                for seed in plan.seeds
            ]
        ),
        jobs_stage(
            [
                PlannedJob(plan.trial(m, rate), functools.partial(work.search, m, rate))
                for m, rate in trials
            ]
        ),
        Stage(len(plan.methods) * len(plan.seeds), finals),
        Stage(len(plan.variants) * len(plan.seeds), ablations),
        jobs_stage(
            [
                PlannedJob(
                    plan.cross_entropy("longer_cross_entropy", seed),
                    functools.partial(work.train_longer, seed),
                )
                for seed in plan.seeds
            ]
        ),
    ]


class _Work:
    """What the jobs do."""

    def __init__(self, plan: Plan, phases: Phases, read: Callable[[], Clips]):
        self._plan, self._phases, self._read = plan, phases, read

    def prepare(self) -> str:
        prepared = prepare(self._read(), self._plan.config)
        write(self._plan.prepared(), prepared)
        test = prepared.test
        return f"test recordings of {test.hours:.1f} h, {len(test.events)} keywords"

    def align(self, seed: int) -> str:
        aligned = self._phases.align(seed)
        self._phases.save(self._plan.aligned(seed), aligned)
        moved = ", ".join(f"{share:.1%}" for share in aligned.moved)
        return f"frames that alignment moved: {moved}"

    def evaluate(self, seed: int) -> str:
        aligned = self._phases.load(self._plan.aligned(seed))
        path = self._plan.cross_entropy("cross_entropy", seed)
        run = self._phases.frame_run(seed, 3 * self._plan.config.epochs)
        return self._leave(
            path,
            seed,
            _settings(run),
            lambda: self._phases.evaluated(aligned.params, aligned, seed),
        )

    def train_longer(self, seed: int) -> str:
        aligned = self._phases.load(self._plan.aligned(seed))
        path = self._plan.cross_entropy("longer_cross_entropy", seed)

        epochs = 3 * self._plan.config.epochs

        def line() -> Line:
            params = self._phases.continued(aligned, seed, epochs)
            return self._phases.evaluated(params, aligned, seed)

        run = self._phases.frame_run(seed, epochs)
        return self._leave(path, seed, _settings(run), line)

    def search(self, method: str, rate: float) -> str:
        plan = self._plan
        run = plan.run_config(method, rate, plan.seeds[0])
        return self._train(
            plan.trial(method, rate), run, Variant(), track=False, test=False
        )

    def final(self, method: str, seed: int) -> str:
        plan = self._plan
        path = plan.final(method, seed)
        if method != MINIMIZE:
            run = plan.run_config(method, plan.best_rate(method), seed)
            return self._train(path, run, Variant(), track=True, test=True)
        aligned = self._phases.load(plan.aligned(seed))
        each = plan.budget / plan.reports
        costs = [each * (number + 1) for number in range(plan.reports)]
        return self._leave(
            path,
            seed,
            {"optimizer": MINIMIZE},
            lambda: self._phases.minimize_end_metric(aligned, Variant(), seed, costs),
        )

    def ablate(self, name: str, seed: int) -> str:
        plan = self._plan
        rate = plan.best_rate(plan.ablated)
        run = plan.run_config(plan.ablated, rate, seed)
        path = plan.ablation(name, seed)
        return self._train(path, run, VARIANTS[name], track=False, test=True)

    def _train(
        self, path: Path, run: RunConfig, variant: Variant, *, track: bool, test: bool
    ) -> str:
        aligned = self._phases.load(self._plan.aligned(run.seed))
        return self._leave(
            path,
            run.seed,
            _settings(run) | {"variant": dataclasses.asdict(variant)},
            lambda: self._phases.train_end_metric(
                aligned, variant, run, track=track, test=test
            ),
        )

    def _leave(
        self, path: Path, seed: int, settings: Line, line: Callable[[], Line]
    ) -> str:
        """Writes the record of a job, in full or not at all."""
        try:
            found = line()
            rejected = found["validation"]["rejects"]
            result = "validation rejects " + ", ".join(f"{r:.1%}" for r in rejected)
        except DivergedError as error:
            found, result = {"stopped": str(error)}, "diverged"
        origin = header(RunConfig(seed=seed)) | {"config": settings}
        write_json(path, {**origin, **found})
        return result


def _settings(run: RunConfig) -> Line:
    """The settings of a run; data and network are those of the study."""
    return {name: getattr(run, name) for name in SETTINGS}


def check_settings(plan: Plan) -> None:
    """Rejects a folder of another study; one without settings gets these.

    Raises:
      ValueError: with the settings that differ.
    """
    path = plan.out / "settings.json"
    settings = json.loads(json.dumps(dataclasses.asdict(plan), default=str))
    del settings["out"]
    begun = any(found != path for found in plan.out.glob("*"))
    if not (begun and path.exists()):
        write_json(path, settings)
        return
    # Earlier studies had no choice of the data set.
    found = {"dataset": KeywordConfig.dataset} | _flat(read_line(path))
    changed = changes(found, _flat(settings))
    if changed:
        raise ValueError(
            f"{str(plan.out)!r} is the folder of another study: {changed}; repeat the "
            "earlier command to resume it, or use another folder"
        )


def _flat(settings: Line) -> Line:
    return {k: v for k, v in settings.items() if k != "config"} | settings["config"]


def read_line(path: Path) -> Line:
    """Reads what `write_json` wrote.

    Raises:
      ValueError: if it is not JSON.
    """
    try:
        found: Line = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is corrupt ({error}); remove it and run the command again"
        ) from error
    return found
