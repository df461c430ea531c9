"""The study of large batch: its plan, what depends on records, and its report."""

import dataclasses
import io
import math

import pytest
import rich.console

from experiments.optimizers import build
from experiments.records.files import read_record, read_records
from experiments.report.cells import Cell
from experiments.report.runs_csv import read_runs, write_runs
from experiments.studies.large_batch import __main__ as large_batch
from experiments.studies.large_batch import methods, step_times
from experiments.studies.large_batch.plan import (
    SMALL,
    Study,
    calibrated,
    candidates_of,
    folder_of,
    stages,
    sweep_of,
)
from experiments.studies.large_batch.report import (
    Found,
    geometric_mean,
    write_report,
)
from experiments.studies.large_batch.settings import csv_path
from experiments.tuning.study import run_study
from experiments.tuning.sweep import final_paths, final_records
from tests.experiments.report.synthetic import falling, write
from tests.experiments.report.test_steps_to import cell
from tests.experiments.tuning.fake_runner import FakeRunner


def test_every_method_can_be_built_and_ends_with_an_epoch(tmp_path):
    study = Study()
    assert sum(task.chosen_on for task in study.tasks) * 2 <= len(study.tasks)
    for place in study.places:
        for group in study.groups:
            candidates = candidates_of(study, group, place, tmp_path)
            if not candidates:
                continue
            sweep = sweep_of(study, place, candidates)
            for method, candidate in zip(sweep.methods, candidates):
                config = method.config
                size = config.batch_size or place.task.examples
                assert config.epochs * place.task.examples == place.steps * size
                drawn = [] if candidate.span is None else method.searches[0]
                tuned = 12 if candidate.momentum else 8
                assert len(drawn) == (0 if candidate.span is None else tuned)
                build(config.optimizer, 0.1, config.optimizer_options)


def test_baselines_are_drawn_over_rate_momentum_and_ramp_at_the_same_places():
    (muon,), (adam,) = (
        next(c for c in methods.LEAD if c.optimizer == name).searches(12, 8)
        for name in ("muon", "adam")
    )
    assert {point["momentum"] for point in muon} == set(methods.MOMENTA)
    assert {point["ramp"] for point in muon} == {0.0, 0.95}
    for mine, other in zip(muon, adam, strict=True):
        assert mine["momentum"] == other["b1"]
        ratio = mine["learning_rate"] / other["learning_rate"]
        assert ratio == pytest.approx(0.07 / 0.015)
        assert 50**-0.5 < mine["learning_rate"] / 0.07 < 50**0.5


def run(study, out, loss_of):
    runner = FakeRunner(loss_of)
    console = rich.console.Console(file=io.StringIO())
    run_study(stages(study, out), runner, console)
    return runner


def test_one_setting_is_chosen_on_half_of_the_tasks_and_run_on_all(tmp_path):
    study = dataclasses.replace(SMALL, groups=("lead", "calibrated"), draws=6, alone=6)

    def loss_of(config):
        # The optimum of the other task is elsewhere and must not matter.
        best = 0.05 if config.batch_size == 256 else 5.0
        return 1 + abs(math.log(config.learning_rate / best))

    run(study, tmp_path, loss_of)
    found = calibrated(study, tmp_path)
    assert [c.optimizer for c in found] == ["muon", "nadamw", "large_batch_nlcg"]
    for candidate, setting in zip(methods.CALIBRATED, found):
        rates = [point["learning_rate"] for point in candidate.searches(6, 6)[0]]
        assert setting.center == min(rates, key=lambda r: abs(math.log(r / 0.05)))
    for place in study.places:
        records = read_records(folder_of(tmp_path, place, "calibrated") / "finals")
        assert {r.config.learning_rate for r in records} == {c.center for c in found}
    assert not run(study, tmp_path, loss_of).ran


def test_one_setting_waits_for_all_tasks_on_which_it_is_chosen(tmp_path):
    second = dataclasses.replace(SMALL.tasks[0], name="second", batch_sizes=(128,))
    study = dataclasses.replace(
        SMALL, tasks=(*SMALL.tasks, second), groups=("lead", "calibrated")
    )

    def loss_of(config):
        return 1 + abs(math.log(config.learning_rate / 0.05))

    part = dataclasses.replace(study, left_out=("fresh", "second"))
    ran = run(part, tmp_path, loss_of).ran
    assert {path.parts[-5:-2] for path in ran} == {
        ("chosen", "batch256_steps8", "lead")
    }
    assert not calibrated(part, tmp_path)
    rest = dataclasses.replace(part, left_out=("chosen",), groups=("lead",))
    ran = run(rest, tmp_path, loss_of).ran
    assert len(calibrated(part, tmp_path)) == 3
    # A trial of another task that was killed is missing, too.
    (killed, *_) = [p for p in ran if "second" in p.parts and "muon" in p.name]
    text = killed.read_text(encoding="utf-8")
    killed.write_text(text[: text.index('{"kind": "summary"') + 9], encoding="utf-8")
    assert len(calibrated(part, tmp_path)) == 2


@pytest.mark.parametrize(
    ("given", "left_out"),
    [((), ()), (("fresh",), ("chosen",)), (("chosen",), ("fresh",))],
)
def test_the_command_keeps_the_tasks_that_it_does_not_run(given, left_out):
    arguments = large_batch.LargeBatchArguments(small=True, tasks=given)
    study = large_batch.study_of(arguments, rich.console.Console())
    assert study.tasks == SMALL.tasks
    assert study.left_out == left_out


def write_csv_files(study, out):
    for place in study.places:
        cells = []
        for group in study.groups:
            sweep = sweep_of(study, place, candidates_of(study, group, place, out))
            records = final_records(sweep, folder_of(out, place, group))
            cells += [Cell((record,)) for record in records]
        write_runs(cells, csv_path(out, place))


def test_final_runs_are_repeated_with_the_settings_of_the_csv_files(tmp_path):
    study = dataclasses.replace(SMALL, groups=("lead", "free", "calibrated"))
    first, again = tmp_path / "first", tmp_path / "again"

    def loss_of(config):
        return 1 + abs(math.log(config.learning_rate / 0.05))

    def finals(out):
        return [
            (
                path.parts[-5:-3],
                record.config.optimizer_options,
                pytest.approx(record.config.learning_rate, rel=1e-5),
                record.config.seed,
            )
            for path in sorted(out.rglob("finals/*"))
            for record in [read_record(path)]
        ]

    run(study, first, loss_of)
    write_csv_files(study, first)
    # A method that was not run at a place is left out there.
    place = study.places[1]
    lines = csv_path(first, place).read_text().splitlines(keepends=True)
    csv_path(first, place).write_text(
        "".join(line for line in lines if not line.startswith("nesterov"))
    )
    repeated = dataclasses.replace(study, settings=first)
    runner = run(repeated, again, loss_of)
    assert all(path.parent.name == "finals" for path in runner.ran)
    expected = [
        config
        for config, path in zip(finals(first), sorted(first.rglob("finals/*")))
        if not (str(place.name) in str(path) and "nesterov" in path.name)
    ]
    assert len(expected) == len(runner.ran) == 2 * (2 * (6 + 5 + 3) - 1)
    assert finals(again) == expected


def test_settings_that_are_not_there_are_refused(tmp_path):
    study = dataclasses.replace(SMALL, groups=("lead",))
    small = study.places[0].batch_size
    run(
        study,
        tmp_path,
        lambda c: c.learning_rate if c.batch_size == small else 1 / c.learning_rate,
    )
    write_csv_files(study, tmp_path)
    known = dataclasses.replace(study, settings=tmp_path)
    assert not calibrated(known, tmp_path)  # two settings, none of them everywhere
    with pytest.raises(ValueError, match="has no run of Shampoo.* at chosen, 256"):
        sweep_of(known, study.places[0], methods.MORE[:1])


def test_the_best_trial_is_refined_along_the_learning_rate(tmp_path):
    study = dataclasses.replace(SMALL, groups=("lead",))
    run(study, tmp_path, lambda config: abs(math.log(config.learning_rate / 0.6)))
    folder = folder_of(tmp_path, study.places[0], "lead")
    final = read_record(folder / "finals" / "batch_256-large_batch_nlcg-seed10.jsonl")
    # Two draws, two beyond the edge, and the best of these times two.
    rates = [line["learning_rate"] for line in final.trials]
    assert len(rates) == 5
    assert rates[4] == 2 * min(rates[:4], key=lambda r: abs(math.log(r / 0.6)))
    assert final.config.learning_rate == min(
        rates, key=lambda r: abs(math.log(r / 0.6))
    )


def test_measured_beta_is_replayed_and_taken_as_a_constant(tmp_path):
    study = dataclasses.replace(SMALL, groups=("lead", "beta"))
    place = study.places[0]
    assert not candidates_of(study, "beta", place, tmp_path)
    run(study, tmp_path, lambda config: config.learning_rate)
    risen, mean, replayed = candidates_of(study, "beta", place, tmp_path)
    # The fake β is .25 and then .75; the ramp alone would be 0 and then .05.
    assert mean.options["beta"] == 0.5
    assert risen.options["beta"] == pytest.approx(1.0 / 0.05)
    assert replayed.options["betas"] == [0.25, 0.75]


def test_ratios_of_steps_are_defined_on_both_sides_of_the_baseline():
    falling = [2 - 0.1 * step for step in range(15)]
    best = cell("muon", falling)
    found = Found(SMALL.places[0], {}, best)
    assert found.ratio(best) == 1
    # Four to five tenths lower is four steps earlier, as much higher the inverse.
    assert found.ratio(cell("nlcg", [x - 0.45 for x in falling])) == 11 / 15
    assert found.ratio(cell("nlcg", [x + 0.45 for x in falling])) == 15 / 11
    # The mean of five steps is not before the fifth.
    assert found.ratio(cell("nlcg", [9.0] * 15)) == 15 / 5
    assert found.ratio(cell("nlcg", [*falling[:8], math.nan])) == math.inf
    mean, p_value = found.difference(cell("nlcg", [x / 2 for x in falling]))
    assert math.isnan(mean)  # one seed says nothing about spread
    assert math.isnan(p_value)
    assert geometric_mean([0.5, 2.0]) == 1.0


def test_paired_differences_of_logarithms():
    ends = [1.0, 2.0, 4.0]
    best = cell("muon", *([9.0, end] for end in ends))
    other = cell("nlcg", *([9.0, end * f] for end, f in zip(ends, (0.5, 0.4, 0.6))))
    mean, p_value = Found(SMALL.places[0], {}, best).difference(other)
    assert mean == pytest.approx(math.log(0.5 * 0.4 * 0.6) / 3)
    logs = [math.log(f) for f in (0.5, 0.4, 0.6)]
    error = (sum((x - mean) ** 2 for x in logs) / 2 / 3) ** 0.5
    t = -mean / error
    # Student's t with two degrees of freedom has a distribution in closed form.
    assert p_value == pytest.approx(1 - t / math.sqrt(2 + t**2))


class TimedRunner:
    """Runs that take a time by optimizer, all of a turn longer by a factor."""

    def __init__(self, seconds, factors):
        self.seconds, self.factors, self.count = seconds, factors, 0

    def run(self, planned):
        (run,) = planned
        turn, self.count = self.count // len(self.seconds), self.count + 1
        return [{"seconds": self.factors[turn] * self.seconds[run.config.optimizer]}]


def test_times_of_a_step_are_compared_within_turns(tmp_path):
    seconds = {
        "muon": 0.6,
        "large_batch_nlcg": 0.9,
        "tuning_free_nlcg": 1.2,
        "adam": 0.3,
    }
    place = Study().places[0]
    runner = TimedRunner(seconds, factors=(100, 1, 5, 2))
    found = step_times.measure(place, 4, runner, tmp_path)
    ratios = {label: time.ratio for label, time in found.items()}
    expected = (1.0, 1.5, 2.0, 0.5)
    assert list(ratios.values()) == pytest.approx(expected)
    milliseconds = [time.milliseconds for time in found.values()]
    assert milliseconds == pytest.approx([10.0, 15.0, 20.0, 5.0])
    (row,) = step_times.table({place.title: found}).rows
    assert row[1:] == ("10", "15", "1.50", "20", "2.00", "5", "0.50")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--turns", "1"], "error: turns=1 must be at least 2"),
        (["--tasks", "other"], "error: tasks=.'other'. are unknown; allowed are"),
    ],
)
def test_wrong_input_ends_the_timing_with_a_message(given, message):
    with pytest.raises(SystemExit, match=message):
        step_times.main(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--tasks", "other"], "error: tasks=.'other'. are unknown; allowed are"),
        (["--report-only"], "error: .*holds no tuned baseline of this study"),
    ],
)
def test_wrong_input_ends_the_command_with_a_message(given, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        large_batch.main(["--small", f"--out={tmp_path}", *given])


def leave(study, place, group, out):
    """Records of the final runs of a group; each method starts a bit lower."""
    candidates = candidates_of(study, group, place, out)
    sweep = sweep_of(study, place, candidates)
    for number, method in enumerate(sweep.methods):
        one = dataclasses.replace(sweep, methods=(method,))
        paths = final_paths(one, folder_of(out, place, group))
        for seed, path in zip(study.final_seeds, paths, strict=True):
            settings = dataclasses.asdict(method.config) | {"seed": seed}
            losses = falling(study.steps, 0.1, start=2 - 0.01 * number - seed**-2)
            write(path.parent, path.stem, settings, losses, final=losses[-1])
    return len(candidates)


def test_a_report_is_of_all_groups_whatever_was_run_last(tmp_path):
    study = dataclasses.replace(SMALL, groups=("step",))
    place, console = study.places[0], rich.console.Console(file=io.StringIO())
    step = leave(study, place, "step", tmp_path)
    with pytest.raises(
        ValueError, match=r"no tuned baseline .*groups \['lead', 'more'"
    ):
        write_report(study, tmp_path, console)
    lead = leave(study, place, "lead", tmp_path)
    write_report(study, tmp_path, console)
    runs = csv_path(tmp_path, place)
    optimizers = [record.config.optimizer for record in read_runs(runs)]
    assert len(optimizers) == len(study.final_seeds) * (lead + step)
    # Those of the tuned methods first, on which `tuned_setting` depends.
    assert optimizers[0] == "muon"
    assert set(optimizers[-len(study.final_seeds) * step :]) == {"slope_ratio"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| **Adam** |" in text
    # A better baseline of another group is the one that all are compared with.
    leave(study, place, "more", tmp_path)
    for path in folder_of(tmp_path, place, "more").rglob("*shampoo*.jsonl"):
        path.write_text(path.read_text().replace('"loss": 1.', '"loss": 0.'))
    write_report(study, tmp_path, console)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| **Shampoo** |" in text
    assert "**Adam**" not in text


@pytest.mark.slow
def test_the_small_study_runs_reports_and_is_not_repeated(tmp_path, capsys):
    given = ["--small", "--out", str(tmp_path), "--groups", "lead", "free"]
    large_batch.main(given)
    capsys.readouterr()
    text = (tmp_path / "report.md").read_text()
    assert "| Schedule-free AdamW |" in text
    assert (tmp_path / "ratios.png").exists()
    # Two seeds of each of eleven methods.
    lines = (tmp_path / "chosen_batch256_steps8.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 11
    large_batch.main(given)
    assert "are not repeated" in capsys.readouterr().out
