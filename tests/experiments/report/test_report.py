import csv
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rich.console

from experiments.config import RunConfig
from experiments.optimizers import OPTIMIZERS
from experiments.records.files import RecordWriter, read_records
from experiments.report.__main__ import main
from experiments.report.batch_sizes import batch_size_table
from experiments.report.cells import (
    by_batch_size,
    group,
    optimizer_family,
    optimizer_label,
    short_labels,
)
from experiments.report.curves import FAMILY_COLOURS
from experiments.report.progress_curves import draw_progress
from experiments.report.runs_table import write_runs
from experiments.report.tables import markdown_table, rich_table


def write(folder, name, settings, losses, *, final, evaluations=1):
    config = RunConfig(**settings)
    with RecordWriter(folder / f"{name}.jsonl", config) as writer:
        for step, loss in enumerate(losses):
            line = {"step": step, "loss": loss, "gradient_equivalents": step + 1}
            line |= {"seconds": 0.1 * (step + 1)}
            if "nlcg" in config.optimizer:
                line |= {"beta": 0.5, "cosine": 0.9}
            writer.write("step", line)
        if final is None:
            writer.write("stopped", {"reason": "the loss became nan"})
        else:
            summary = {"gradient_equivalents": len(losses), "seconds": 0.5}
            summary |= {"train_loss": final, "test_accuracy": 1 - final}
            evaluation = {**summary, "step": len(losses)}
            evaluation |= {"validation_accuracy": 0.5}
            for _ in range(evaluations):
                writer.write("evaluation", evaluation)
            writer.write("summary", summary)


@pytest.fixture
def folder(tmp_path):
    records = tmp_path / "records"
    for seed, final in enumerate((0.1, 0.2, 0.3)):
        sgd = {"optimizer": "sgd", "learning_rate": 0.5, "seed": seed}
        write(records, f"a{seed}", sgd, [2.0, 1.0, final], final=final)
    smooth = {"optimizer": "nlcg_pr+_rms", "optimizer_options": {"beta_smoothing": 0.9}}
    write(records, "b0", smooth, [2.0, 1.0, 0.05], final=0.05)
    write(records, "b1", {**smooth, "seed": 1}, [2.0, float("nan")], final=None)
    write(records, "c0", {"batch_size": None}, [2.0] * 15, final=0.5)
    return records


def test_records_are_grouped_by_everything_but_the_seed(folder):
    rows = by_batch_size(group(read_records(folder)))
    labels = {name: [cell.label for cell in cells] for name, cells in rows.items()}
    assert labels == {
        "batch size 256": ["SGD", "NLCG PR+ · rms, β smoothing 0.9"],
        "full batch": ["NLCG PR+ · rms"],
    }


def test_a_table_says_median_range_and_divergence(folder):
    cells = by_batch_size(group(read_records(folder)))["batch size 256"]
    lines = markdown_table(cells).splitlines()
    assert lines[2] == (
        "| **SGD** | **0.5** | **0.2000 [0.1000, 0.3000]** | **80.0 [70.0, 90.0]** "
        "| **3** | **0.50** |"
    )
    assert "| – (1 of 2 diverged) |" in lines[3]
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(rich_table("title", cells))
    text = console.file.getvalue()
    assert "SGD" in text
    assert "0.2000" in text


def test_accuracy_against_batch_size_has_a_column_for_each_method(folder):
    # The same method at another batch size, with options that were searched.
    tuned = {"optimizer": "nlcg_pr+_rms", "batch_size": 8}
    tuned["optimizer_options"] = {"beta_smoothing": 0.9, "beta_max": 0.87654}
    write(folder, "d0", tuned, [1.0] * 7, final=0.25)
    cells = group(read_records(folder))
    assert batch_size_table(cells).splitlines() == [
        "| batch | steps | SGD | NLCG PR+ · rms |",
        "|---|---:|---:|---:|",
        "| 8 | 7 |  | **75.0** |",
        "| 256 | 3 | **80.0 [70.0, 90.0]** | – |",
        "| full | 15 |  | **50.0** |",
    ]
    # Two of one method at a batch size are told apart by their options.
    write(folder, "e0", {"optimizer": "nlcg_pr+_rms"}, [1.0], final=0.1)
    labels = short_labels(group(read_records(folder)))
    assert labels == [
        "SGD",
        "NLCG PR+ · rms, β smoothing 0.9",
        "NLCG PR+ · rms",
        "NLCG PR+ · rms",
        "NLCG PR+ · rms",
    ]


def test_every_run_has_a_line_with_its_figures(folder, tmp_path):
    write_runs(group(read_records(folder)), tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert [line["seed"] for line in lines] == ["0", "1", "2", "0", "1", "0"]
    assert lines[2] | {"commit": ""} == {
        "optimizer": "sgd",
        "batch_size": "256",
        "options": "",
        "learning_rate": "0.5",
        "l2": "0",
        "seed": "2",
        "steps": "3",
        "train_loss": "0.3",
        "train_accuracy": "",
        "validation_accuracy": "",
        "test_loss": "",
        "test_accuracy": "0.7",
        "gradient_equivalents": "3",
        "seconds": "0.5",
        "commit": "",
    }
    assert lines[3]["options"] == "beta_smoothing=0.9"
    assert lines[4]["train_loss"] == ""


def test_the_command_writes_tables_and_curves(folder, capsys):
    main([str(folder)])
    assert "SGD" in capsys.readouterr().out
    report = (folder.parent / "report.md").read_text(encoding="utf-8")
    assert "from 6 records" in report
    assert "### Full batch, 15 steps" in report
    for name in ("curves", "loss", "batch_sizes"):
        picture = (folder.parent / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert f"![{name}]({name}.png)" in report


@pytest.mark.parametrize("evaluations", [1, 2])
def test_accuracy_is_drawn_if_it_was_measured_on_the_way(tmp_path, evaluations):
    records = tmp_path / "records"
    write(records, "a", {}, [2.0, 1.0], final=0.5, evaluations=evaluations)
    main([str(records)])
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert ("![accuracy](accuracy.png)" in report) == (evaluations > 1)
    assert (tmp_path / "accuracy.png").exists() == (evaluations > 1)


# Two seeds of three steps: their losses, and accuracies after the first and the last.
LOSSES = ([4.0, 2.0, 1.0], [6.0, 4.0, 2.0])
ACCURACIES = ([0.25, 0.5], [0.5, 0.75])


def costs(step):
    return {"step": step, "gradient_equivalents": 4.0 * step, "seconds": 0.5 * step}


@pytest.fixture
def curves_of(tmp_path, monkeypatch):
    """The panels that a figure of the two seeds has, with what is drawn in them."""
    for seed, (losses, accuracies) in enumerate(zip(LOSSES, ACCURACIES)):
        config = RunConfig(optimizer="sgd", seed=seed)
        with RecordWriter(tmp_path / f"{seed}.jsonl", config) as writer:
            for row, loss in enumerate(losses):
                writer.write("step", {**costs(row + 1), "step": row, "loss": loss})
            for step, accuracy in zip((1, 3), accuracies):
                line = {**costs(step), "validation_accuracy": accuracy}
                writer.write("evaluation", line)
    panels, subplots = [], plt.subplots

    def kept(*arguments, **settings):
        figure, axes = subplots(*arguments, **settings)
        panels.extend(axes.flat)
        return figure, axes

    monkeypatch.setattr(plt, "subplots", kept)

    def draw(quantity):
        cells = group(read_records(tmp_path))
        draw_progress(cells, quantity, tmp_path / "figure.png")
        return {panel.get_xlabel(): panel for panel in panels}

    return draw


COST_AXES = [
    ("step", 1.0),
    ("gradient-equivalents", 4.0),
    ("seconds", 0.5),
]


@pytest.mark.parametrize(("axis", "cost"), COST_AXES)
def test_the_loss_is_drawn_against_every_cost(axis, cost, curves_of):
    (line,) = curves_of("loss")[axis].get_lines()
    np.testing.assert_allclose(line.get_xdata(), [cost, 2 * cost, 3 * cost])
    # The medians 5, 3 and 1.5, each the mean of five with the ends repeated.
    expected = [(3 * 5 + 3 + 1.5) / 5, (2 * 5 + 3 + 2 * 1.5) / 5, (5 + 3 + 4.5) / 5]
    np.testing.assert_allclose(line.get_ydata(), expected)


@pytest.mark.parametrize(("axis", "cost"), COST_AXES)
def test_the_accuracy_is_drawn_against_every_cost(axis, cost, curves_of):
    panel = curves_of("accuracy")[axis]
    (line,) = panel.get_lines()
    np.testing.assert_allclose(line.get_xdata(), [cost, 3 * cost])
    np.testing.assert_allclose(line.get_ydata(), [37.5, 62.5])
    (shadow,) = panel.collections
    corners = shadow.get_paths()[0].get_extents()
    assert (corners.x0, corners.x1) == pytest.approx((cost, 3 * cost))
    assert (corners.y0, corners.y1) == pytest.approx((25, 75))


def test_what_cannot_be_reported_ends_with_a_message(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"error: there is no record .* in '.*g'"):
        main([str(tmp_path / "nothing")])
    killed = folder / "c0.jsonl"
    content = killed.read_text(encoding="utf-8")
    # In the middle of a line, and between two.
    for part in (content[:-9], content[: content.rindex('{"kind": "summary"')]):
        killed.write_text(part, encoding="utf-8")
        with pytest.raises(SystemExit, match=r"error: .*c0.jsonl is .* not come to"):
            main([str(folder)])
    killed.write_text('{"kind"\n' + content, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: .*c0.jsonl:1 is not a line"):
        main([str(folder)])
    killed.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: .*Not a directory: .*c0.jsonl"):
        main([str(folder), f"--out={killed / 'report'}"])


def test_every_optimizer_has_a_label_and_a_colour_of_its_family():
    labels = {optimizer_label(RunConfig(optimizer=name)) for name in OPTIMIZERS}
    assert len(labels) == len(OPTIMIZERS)
    assert {optimizer_family(name) for name in OPTIMIZERS} == set(FAMILY_COLOURS)
